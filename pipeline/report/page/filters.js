// Filters and sorts the rows of the gallery.
"use strict";

const tools = document.getElementById("tools");
const field = (id) => document.getElementById(id);

const orders = {
  unsure: (a, b) => a.confidence - b.confidence,
  sure: (a, b) => b.confidence - a.confidence,
  most: (a, b) => b.segments - a.segments,
  fewest: (a, b) => a.segments - b.segments,
};

function addOption(select, value, text) {
  const option = document.createElement("option");
  option.value = value;
  option.textContent = text;
  select.append(option);
}

function fillChoices() {
  for (const status of report.run.statuses) addOption(field("status"), status, status);
  report.run.names.forEach(([name], number) => addOption(field("name"), number, name));
  field("name").closest("label").hidden = report.run.names.length === 0;
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
  const name = field("name").value === "" ? null : Number(field("name").value);
  const segments = bounds("least-segments", "most-segments");
  const confidence = bounds("least-confidence", "most-confidence");
  const chosen = report.rows.filter(
    (row) =>
      (words === "" || row.key.toLowerCase().includes(words)) &&
      (status === "" || row.status === status) &&
      (name === null || row.names.includes(name)) &&
      // Rows without labels have neither number.
      (segments.any || (row.tile >= 0 && segments.has(row.segments))) &&
      (confidence.any || (row.tile >= 0 && confidence.has(row.confidence))),
  );
  const order = orders[field("order").value];
  if (!order) return chosen;
  return chosen.sort((a, b) => (a.tile < 0) - (b.tile < 0) || order(a, b) || a.number - b.number);
}
