// The gallery. Only cards near the visible part of the page exist.
"use strict";

const grid = document.getElementById("grid");
const gallery = { rows: [], columns: 1, width: 0, height: 0, active: 0, cards: new Map() };

const GAP = 12;
const CAPTION = 46;
const SPARE_LINES = 2;

function measure() {
  const available = grid.clientWidth;
  const target = available < 560 ? 150 : 210;
  gallery.columns = Math.max(1, Math.floor((available + GAP) / (target + GAP)));
  gallery.width = Math.floor((available - GAP * (gallery.columns - 1)) / gallery.columns);
  gallery.height = gallery.width + CAPTION + GAP;
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
  const card = document.createElement("li");
  card.setAttribute("aria-setsize", gallery.rows.length);
  card.setAttribute("aria-posinset", position + 1);
  const line = Math.floor(position / gallery.columns);
  const x = (position % gallery.columns) * (gallery.width + GAP);
  card.style.transform = `translate(${x}px, ${line * gallery.height}px)`;
  card.style.width = `${gallery.width}px`;
  card.style.height = `${gallery.height - GAP}px`;
  const button = document.createElement("button");
  button.type = "button";
  button.tabIndex = position === gallery.active ? 0 : -1;
  button.dataset.position = position;
  const picture = document.createElement("span");
  picture.className = "picture";
  const caption = document.createElement("span");
  caption.className = "caption";
  const key = document.createElement("bdi");
  key.textContent = row.key;
  const facts = document.createElement("small");
  facts.textContent = row.tile < 0 ? row.status : `${row.segments} segments · ${row.confidence.toFixed(2)}`;
  caption.append(key, facts);
  button.append(picture, caption);
  card.append(button);
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
    if (picture.isConnected) picture.replaceChildren(...layers(row, tile));
  } catch (error) {
    picture.classList.add("failed");
    picture.textContent = error.message;
  }
}

function imageOf(kind, type, data, text) {
  const image = document.createElement("img");
  image.className = kind;
  image.alt = text;
  image.decoding = "async";
  image.src = `data:image/${type};base64,${data}`;
  return image;
}

function sourceImageOf(row, tile) {
  return imageOf("photograph", "jpeg", tile.photograph, `Source image ${row.key}`);
}

function maskOf(row, tile) {
  return imageOf("mask", "png", tile.mask, `${row.segments} segments of ${row.key}`);
}

// The source image with the segments above it; the style sheet decides which of them is visible.
function layers(row, tile) {
  const mask = maskOf(row, tile);
  if (!tile.photograph) {
    mask.classList.add("alone");
    return [mask];
  }
  return [sourceImageOf(row, tile), mask];
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
