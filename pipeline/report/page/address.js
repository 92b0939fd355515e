// Keeps the filters, the open sample and the highlighted segment in the address of the page, behind #gallery?
"use strict";

const remembered = [...tools.querySelectorAll("select, input:not([type=radio])")];
const loading = { sample: location.hash.includes("sample=") }; // whether the sample of the address is still to be opened

function defaultOf(input) {
  if (input.type === "checkbox") return String(input.defaultChecked);
  return input.tagName === "SELECT" ? (input.options[0]?.value ?? "") : input.defaultValue;
}

function valueOf(input) {
  return input.type === "checkbox" ? String(input.checked) : input.value;
}

function addressOfState() {
  const state = new URLSearchParams();
  for (const input of remembered) if (valueOf(input) !== defaultOf(input)) state.set(input.id, valueOf(input));
  if (tools.elements.look.value !== "overlay") state.set("look", tools.elements.look.value);
  if (detail.open && shown.row) {
    state.set("sample", shown.row.key);
    if (shown.region) state.set("segment", shown.tile.segments[shown.region - 1][0]);
  }
  return String(state) ? `#gallery?${state}` : "#gallery";
}

let writing = 0;

// Browsers refuse many changes of the address in a short time, so a drag of a slider changes it once.
function writeAddress() {
  clearTimeout(writing);
  writing = setTimeout(() => {
    if (!views[0].hidden && report.rows && !loading.sample) history.replaceState(null, "", addressOfState());
  }, 150);
}

function stateOfAddress() {
  return new URLSearchParams(location.hash.split("?").slice(1).join("?"));
}

// Sets the filters as the address says, and all others to their defaults.
function readFilters() {
  const state = stateOfAddress();
  for (const input of remembered) {
    const value = state.get(input.id) ?? defaultOf(input);
    if (input.type === "checkbox") input.checked = value === "true";
    else input.value = value;
    if (input.tagName === "SELECT" && input.selectedIndex < 0) input.value = defaultOf(input);
  }
  for (const radio of tools.elements.look) radio.checked = radio.value === (state.get("look") ?? "overlay");
}

// Opens the sample of the address. Returns false if it is not among the rows.
function openSample() {
  const state = stateOfAddress();
  if (!state.has("sample")) return true;
  const position = gallery.rows.findIndex((row) => row.key === state.get("sample"));
  if (position < 0) return false;
  gallery.active = position;
  openDetail(position, state.has("segment") ? Number(state.get("segment")) : null);
  return true;
}
