// Filters and sorts the rows of the gallery.
"use strict";

const tools = document.getElementById("tools");
const field = (id) => document.getElementById(id);

const orders = {
  unsure: (a, b) => a.confidence - b.confidence,
  sure: (a, b) => b.confidence - a.confidence,
  most: (a, b) => b.segments - a.segments,
  fewest: (a, b) => a.segments - b.segments,
  worst: (a, b) => coveringOf(a, Infinity) - coveringOf(b, Infinity),
  best: (a, b) => coveringOf(b, -Infinity) - coveringOf(a, -Infinity),
};

// Returns the score of a row in the chosen evaluation.
function coveringOf(row, fallback) {
  return row.covering[field("evaluation").value] ?? fallback;
}

function addOption(select, value, text) {
  const option = document.createElement("option");
  option.value = value;
  option.textContent = text;
  select.append(option);
}

function fillChoices() {
  for (const status of report.run.statuses) addOption(field("status"), status, status);
  for (const [name] of report.run.names) addOption(field("name"), name, name);
  report.run.evaluations.forEach((name, number) => addOption(field("evaluation"), number, name));
  field("name").closest("label").hidden = report.run.names.length === 0;
  for (const part of document.querySelectorAll("[data-needs=evaluation]")) part.hidden = !isScored();
  document.body.classList.toggle("scored", isScored());
  if (isScored()) {
    addOption(field("order"), "worst", "lowest covering first");
    addOption(field("order"), "best", "highest covering first");
  }
  field("evaluation").closest("label").hidden = report.run.evaluations.length < 2;
}

function bounds(lowId, highId) {
  const number = (id, fallback) => (field(id).value === "" ? fallback : Number(field(id).value));
  const low = number(lowId, -Infinity);
  const high = number(highId, Infinity);
  return { any: low === -Infinity && high === Infinity, has: (value) => low <= value && value <= high };
}

function chosenRows() {
  const words = field("search").value.toLowerCase();
  const status = field("status").value;
  const name = report.run.names.findIndex(([text]) => text === field("name").value && text !== "");
  const segments = bounds("least-segments", "most-segments");
  const confidence = bounds("least-confidence", "most-confidence");
  const covering = bounds("least-covering", "most-covering");
  const onlyMarked = field("only-marked").checked;
  const chosen = report.rows.filter(
    (row) =>
      (words === "" || row.key.toLowerCase().includes(words)) &&
      (status === "" || row.status === status) &&
      (name < 0 || row.names.includes(name)) &&
      (!onlyMarked || marks.keys.has(row.key)) &&
      // Rows without labels have neither number.
      (segments.any || (row.tile >= 0 && segments.has(row.segments))) &&
      (confidence.any || (row.tile >= 0 && confidence.has(row.confidence))) &&
      (covering.any || covering.has(coveringOf(row, NaN))),
  );
  const order = orders[field("order").value];
  if (!order) return chosen;
  return chosen.sort((a, b) => (a.tile < 0) - (b.tile < 0) || order(a, b) || a.number - b.number);
}

// Returns the filters that are set, in words.
function filtersInWords() {
  const range = (what, id) => {
    const [low, high] = [field(`least-${id}`).value, field(`most-${id}`).value];
    return low || high ? `${what}${low && ` from ${low}`}${high && ` to ${high}`}` : "";
  };
  const chosen = (what, id) => field(id).value && `${what} “${field(id).value}”`;
  return [
    chosen("a key with", "search"), chosen("status", "status"), chosen("name", "name"),
    range("segments", "segments"), range("confidence", "confidence"), range("covering", "covering"),
    field("only-marked").checked ? "a mark" : "",
  ].filter(Boolean).join(" and ");
}
