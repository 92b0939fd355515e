// Connects the parts of the page: views, the tools above the gallery, and the keyboard.
"use strict";

const views = [...document.querySelectorAll("main > section")];

function showView() {
  const name = location.hash.split("?")[0];
  const wanted = views.find((view) => `#${view.id}` === name) ?? views[0];
  for (const view of views) view.hidden = view !== wanted;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${wanted.id}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  scrollTo(0, 0);
  if (wanted.id === "gallery") requestAnimationFrame(resize);
}

// Follows an address that was typed or chosen from the history. A plain #gallery keeps the filters.
function followAddress() {
  if (detail.open && !stateOfAddress().has("sample")) detail.close();
  showView();
  if (views[0].hidden || !report.rows) return;
  if (location.hash.includes("?")) {
    readFilters();
    look();
    filter();
    openSample();
  } else writeAddress();
}

function resize() {
  showRows(gallery.rows);
}

function filter() {
  const rows = chosenRows();
  showRows(rows);
  if (detail.open && shown.row) showPlace();
  const all = report.run.rows;
  const still = report.rows.length < all ? `, ${report.rows.length} loaded so far` : "";
  const count = rows.length.toLocaleString("en");
  const text = `${rows.length === all ? count : `${count} of ${all.toLocaleString("en")}`} rows`;
  const nothing = rows.length === 0 && all > 0 && !still;
  field("found").textContent = text + (rows.length === all ? "" : still);
  field("nothing").hidden = !nothing;
  if (nothing) field("nothing-why").textContent = `No row has ${filtersInWords()}.`;
  writeAddress();
}

function look() {
  document.body.dataset.look = tools.elements.look.value;
  document.body.style.setProperty("--opacity", field("opacity").value / 100);
  if (report.rows) writeAddress();
}

function chooseLook(number) {
  tools.elements.look[number].checked = true;
  look();
}

let waiting = false;
addEventListener("scroll", () => {
  if (waiting || views[0].hidden) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    draw();
  });
}, { passive: true });
addEventListener("resize", () => views[0].hidden || resize());
addEventListener("hashchange", followAddress);

tools.addEventListener("submit", (event) => event.preventDefault());
tools.addEventListener("input", filter);
field("look-tools").addEventListener("input", (event) => {
  event.stopPropagation(); // these tools do not filter
  look();
});
field("clear-filters").addEventListener("click", () => tools.reset());
tools.addEventListener("reset", () => setTimeout(() => { look(); filter(); }));

grid.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  focusOn(Number(button.dataset.position));
  openDetail(Number(button.dataset.position));
});

const steps = {
  ArrowLeft: () => -1,
  ArrowRight: () => 1,
  ArrowUp: () => -gallery.columns,
  ArrowDown: () => gallery.columns,
  PageUp: () => -gallery.columns * Math.max(1, Math.floor(innerHeight / gallery.height)),
  PageDown: () => gallery.columns * Math.max(1, Math.floor(innerHeight / gallery.height)),
  Home: () => -gallery.rows.length,
  End: () => gallery.rows.length,
};

grid.addEventListener("keydown", (event) => {
  if (!steps[event.key] || event.altKey || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  focusOn(gallery.active + steps[event.key]());
});

document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if (detail.open) {
    if (event.target.matches("[type=range], [type=radio]")) return; // these have arrow keys of their own
    if (event.key === "ArrowLeft") openDetail(shown.position - 1);
    if (event.key === "ArrowRight") openDetail(shown.position + 1);
    if (event.key === "m") mark(shown.row, !marks.keys.has(shown.row.key));
    if ("123".includes(event.key)) chooseLook(Number(event.key) - 1);
    return;
  }
  if (event.target.matches("input, select, textarea") || views[0].hidden) return;
  if (event.key === "/") {
    event.preventDefault();
    field("search").focus();
  } else if ("123".includes(event.key)) chooseLook(Number(event.key) - 1);
  else if (event.key === "m" && event.target.closest("#grid")) {
    const row = gallery.rows[gallery.active];
    mark(row, !marks.keys.has(row.key));
  }
});

// On a phone the filters are collapsed, so that pictures come first.
field("fold").addEventListener("click", () => {
  field("fold").setAttribute("aria-expanded", tools.classList.toggle("open"));
});

field("before").addEventListener("click", () => openDetail(shown.position - 1));
field("after").addEventListener("click", () => openDetail(shown.position + 1));
field("close").addEventListener("click", () => detail.close());
detail.addEventListener("click", (event) => event.target === detail && detail.close());
field("detail-mark").addEventListener("change", () => mark(shown.row, field("detail-mark").checked));
detail.addEventListener("close", () => {
  field("look-home").append(field("look-tools"));
  shown.row = null;
  writeAddress();
  focusOn(shown.position);
});

// Shows the gallery with one filter; `followAddress` sets it, or `loadRows` if the rows are not there yet.
function filterBy(id, value) {
  location.hash = `#gallery?${new URLSearchParams({ [id]: value })}`;
}

for (const id of ["status", "name"]) {
  for (const button of document.querySelectorAll(`[data-${id}]`)) {
    button.addEventListener("click", () => filterBy(id, button.dataset[id]));
  }
}

look();
showView();
let choicesFilled = false;
loadRows(() => {
  if (!choicesFilled) {
    fillChoices();
    readFilters();
    restoreMarks();
    look();
  }
  choicesFilled = true;
  filter();
  if (loading.sample && openSample()) loading.sample = false;
}).then(() => {
  if (loading.sample) field("saved").textContent = "The sample of the address is not among these rows.";
  loading.sample = false;
}).catch((error) => {
  field("found").textContent = `The rows cannot be loaded: ${error.message}`;
});
