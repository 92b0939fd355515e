// Connects the parts of the page: views, the tools above the gallery, and the keyboard.
"use strict";

const views = [...document.querySelectorAll("main > section")];

function showView() {
  const wanted = views.find((view) => `#${view.id}` === location.hash) ?? views[0];
  for (const view of views) view.hidden = view !== wanted;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${wanted.id}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  scrollTo(0, 0);
  if (wanted.id === "gallery") requestAnimationFrame(resize);
}

function resize() {
  showRows(gallery.rows);
}

function filter() {
  const rows = chosenRows();
  showRows(rows);
  const all = report.run.rows;
  const still = report.rows.length < all ? `, ${report.rows.length} loaded so far` : "";
  field("found").textContent =
    rows.length === all ? `${all.toLocaleString("en")} rows` : `${rows.length.toLocaleString("en")} of ${all.toLocaleString("en")} rows${still}`;
}

function look() {
  grid.dataset.look = tools.elements.look.value;
  document.body.style.setProperty("--opacity", field("opacity").value / 100);
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
addEventListener("hashchange", showView);

tools.addEventListener("submit", (event) => event.preventDefault());
tools.addEventListener("input", (event) => {
  if (event.target.name === "look" || event.target.id === "opacity") look();
  else filter();
});
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
    if (event.key === "ArrowLeft") openDetail(shown.position - 1);
    if (event.key === "ArrowRight") openDetail(shown.position + 1);
    return;
  }
  if (event.target.matches("input, select, textarea") || views[0].hidden) return;
  if (event.key === "/") {
    event.preventDefault();
    field("search").focus();
  } else if ("123".includes(event.key)) chooseLook(Number(event.key) - 1);
});

// On a phone the filters are collapsed, so that pictures come first.
field("fold").addEventListener("click", () => {
  field("fold").setAttribute("aria-expanded", tools.classList.toggle("open"));
});

field("before").addEventListener("click", () => openDetail(shown.position - 1));
field("after").addEventListener("click", () => openDetail(shown.position + 1));
field("close").addEventListener("click", () => detail.close());
detail.addEventListener("click", (event) => event.target === detail && detail.close());
detail.addEventListener("close", () => focusOn(shown.position));

for (const button of document.querySelectorAll("[data-status]")) {
  button.addEventListener("click", () => {
    tools.reset();
    field("status").value = button.dataset.status;
    location.hash = "#gallery";
    filter();
  });
}

look();
showView();
let choicesFilled = false;
loadRows(() => {
  if (!choicesFilled) fillChoices();
  choicesFilled = true;
  filter();
}).catch((error) => {
  field("found").textContent = `The rows cannot be loaded: ${error.message}`;
});
