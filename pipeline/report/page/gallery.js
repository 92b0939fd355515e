// The gallery. Only cards near the visible part of the page exist.
"use strict";

const grid = document.getElementById("grid");
const gallery = { rows: [], columns: 1, width: 0, height: 0, active: 0, cards: new Map() };

const GAP = 12;
const CAPTION = 46; // heights in pixels, as in the style sheet
const SCORED_CAPTION = 62;
const SPARE_LINES = 2;

function measure() {
  const available = grid.clientWidth;
  const target = available < 560 ? 150 : 210;
  gallery.columns = Math.max(1, Math.floor((available + GAP) / (target + GAP)));
  gallery.width = Math.floor((available - GAP * (gallery.columns - 1)) / gallery.columns);
  gallery.height = gallery.width + (isScored() ? SCORED_CAPTION : CAPTION) + GAP;
  grid.style.height = `${Math.ceil(gallery.rows.length / gallery.columns) * gallery.height}px`;
}

function showRows(rows) {
  gallery.rows = rows;
  gallery.active = Math.min(gallery.active, Math.max(0, rows.length - 1));
  for (const card of gallery.cards.values()) card.remove();
  gallery.cards.clear();
  measure();
  draw();
}

function draw() {
  const above = -grid.getBoundingClientRect().top;
  const first = Math.floor(above / gallery.height) - SPARE_LINES;
  const last = Math.ceil((above + innerHeight) / gallery.height) + SPARE_LINES;
  const from = Math.max(0, first * gallery.columns);
  const to = Math.min(gallery.rows.length, last * gallery.columns);
  for (const [position, card] of gallery.cards) {
    const away = position < from || position >= to;
    // A card that has the focus is kept, because removing it would move the focus elsewhere.
    if (away && !card.contains(document.activeElement)) {
      card.remove();
      gallery.cards.delete(position);
    }
  }
  for (let position = from; position < to; position++) {
    if (!gallery.cards.has(position)) gallery.cards.set(position, addCard(position));
  }
}

function addCard(position) {
  const row = gallery.rows[position];
  const card = element("li");
  card.setAttribute("aria-setsize", gallery.rows.length);
  card.setAttribute("aria-posinset", position + 1);
  const line = Math.floor(position / gallery.columns);
  const x = (position % gallery.columns) * (gallery.width + GAP);
  card.style.transform = `translate(${x}px, ${line * gallery.height}px)`;
  card.style.width = `${gallery.width}px`;
  card.style.height = `${gallery.height - GAP}px`;
  const button = element("button");
  button.type = "button";
  button.tabIndex = position === gallery.active ? 0 : -1;
  button.dataset.position = position;
  const picture = element("span", "", "picture");
  const caption = element("span", "", "caption");
  caption.append(element("bdi", row.key), element("small", row.tile < 0 ? row.status : factsOf(row)));
  const covering = coveringOf(row, null);
  if (covering !== null) caption.append(element("small", `covering ${covering.toFixed(2)}`));
  button.append(picture, caption);
  card.append(button, markOf(row));
  grid.append(card);
  fillPicture(picture, row);
  return card;
}

async function fillPicture(picture, row) {
  if (row.tile < 0) {
    picture.classList.add("failed");
    picture.textContent = row.error || row.status;
    return;
  }
  try {
    const tile = await loadTile(row);
    const images = await layers(row, tile, tile);
    if (picture.isConnected) picture.replaceChildren(...images);
  } catch (error) {
    picture.classList.add("failed");
    picture.textContent = error.message;
  }
}

function factsOf(row) {
  return `${row.segments} segment${row.segments === 1 ? "" : "s"} · ${row.confidence.toFixed(2)}`;
}

function isScored() {
  return Boolean(report.run?.evaluations.length);
}

// Returns a box that marks a row. The keyboard marks the active row by m.
function markOf(row) {
  const label = element("label", "", "mark");
  label.title = "Mark this sample (m)";
  const box = document.createElement("input");
  box.type = "checkbox";
  box.tabIndex = -1;
  box.dataset.mark = "";
  box.checked = marks.keys.has(row.key);
  box.setAttribute("aria-label", `Mark ${row.key}`);
  box.addEventListener("change", () => mark(row, box.checked));
  label.append(box);
  return label;
}

function element(name, text = "", className = "") {
  const created = document.createElement(name);
  created.textContent = text;
  if (className) created.className = className;
  return created;
}

function imageOf(row, data) {
  const image = element("img", "", "photograph");
  image.alt = `Source image ${row.key}`;
  image.decoding = "async";
  image.src = `data:image/jpeg;base64,${data}`;
  return image;
}

function maskOf(row) {
  const mask = element("canvas", "", "mask");
  mask.setAttribute("role", "img");
  mask.setAttribute("aria-label", `${row.segments} segments of ${row.key}`);
  return mask;
}

// Returns the source image with the segments above it; the style sheet decides which of them is visible.
async function layers(row, tile, picture, region = 0) {
  const mask = maskOf(row);
  drawRegions(mask, picture.pixels, await unpackRegions(picture), tile.segments, region);
  if (picture.photograph) return [imageOf(row, picture.photograph), mask];
  mask.classList.add("alone");
  return [mask];
}

function focusOn(position) {
  const before = gallery.cards.get(gallery.active)?.firstChild;
  if (before) before.tabIndex = -1;
  gallery.active = Math.max(0, Math.min(position, gallery.rows.length - 1));
  const top = grid.getBoundingClientRect().top + Math.floor(gallery.active / gallery.columns) * gallery.height;
  const bar = tools.getBoundingClientRect().bottom > 0 ? tools.offsetHeight : 0;
  if (top < bar) scrollBy(0, top - bar - GAP);
  else if (top + gallery.height > innerHeight) scrollBy(0, top + gallery.height - innerHeight + GAP);
  draw();
  const button = gallery.cards.get(gallery.active)?.firstChild;
  if (button) {
    button.tabIndex = 0;
    button.focus({ preventScroll: true });
  }
}
