// The dialog of one sample: its picture in full size, in which a click highlights a segment, and the fields of its row.
"use strict";

const detail = document.getElementById("detail");
const stage = document.getElementById("stage");
const shown = { position: -1, row: null, tile: null, picture: null, region: 0 };

// Opens a row of the gallery; `segment` is the id of the segment to highlight, if any.
async function openDetail(position, segment = null) {
  if (position < 0 || position >= gallery.rows.length) return;
  const row = gallery.rows[position];
  Object.assign(shown, { position, row, tile: null, picture: null, region: 0 });
  field("detail-key").textContent = row.key;
  showPlace();
  field("detail-mark").checked = marks.keys.has(row.key);
  field("detail-more").replaceChildren();
  field("detail-picture").hidden = row.tile < 0;
  stage.replaceChildren();
  if (!detail.open) {
    field("look-place").append(field("look-tools"));
    detail.showModal();
  }
  writeAddress();
  if (row.tile < 0) {
    field("detail-more").append(element("p", `${row.status}: ${row.error}`, "note"));
    return;
  }
  try {
    const tile = await loadTile(row);
    if (shown.row !== row) return;
    shown.tile = tile;
    fillDetail(row, tile);
    await showPicture(tile);
    const region = tile.segments.findIndex(([id]) => id === segment) + 1;
    if (shown.row === row && region) await highlight(region);
    if (tile.full) {
      const full = await loadFull(row);
      if (shown.row === row) await showPicture(full);
    }
  } catch (error) {
    if (shown.row === row) field("detail-more").prepend(element("p", error.message, "note"));
  }
}

// Shows where the open row is. The position changes while the list of rows is still loading.
function showPlace() {
  const { row } = shown;
  const position = gallery.rows.indexOf(row);
  if (position >= 0) shown.position = position;
  const count = (number) => number.toLocaleString("en");
  const place = `${count(shown.position + 1)} of ${count(gallery.rows.length)}`;
  field("detail-facts").textContent = `row ${row.index} of shard ${report.run.shards[row.part]} · ${place}`;
  field("before").disabled = shown.position === 0;
  field("after").disabled = shown.position >= gallery.rows.length - 1;
}

// Draws a picture of the open row, small or in full size, with its highlighted segment.
async function showPicture(picture) {
  const { row, tile, region } = shown;
  const map = await unpackRegions(picture);
  const images = await layers(row, tile, picture, region);
  if (shown.row !== row || shown.region !== region) return;
  shown.picture = picture;
  stage.style.setProperty("--ratio", tile.size[0] / tile.size[1]);
  stage.style.setProperty("--width", `${picture.pixels[0]}px`);
  stage.classList.toggle("enlarged", picture.pixels[0] < stage.clientWidth);
  stage.replaceChildren(...images);
  const middle = region ? middleOf(picture.pixels, map, region) : null;
  if (middle) stage.append(nameTag(tile.segments[region - 1], middle));
}

// Returns the name of a segment, or its number, to be shown at a position of the picture.
function nameTag(segment, [x, y]) {
  const [id, area, confidence, name, score] = segment;
  const colour = colourOf(segment);
  const tag = element("span", "", "tag");
  tag.append(element("bdi", name ?? `segment ${id}`), ` ${shareOf(area)}${
    score === null ? ` · ${confidence.toFixed(2)}` : ` · score ${score.toFixed(2)}`}`);
  tag.style.background = colour;
  tag.style.color = inkOn(colour);
  tag.style.left = `${100 * x}%`;
  tag.style.top = `${100 * y}%`;
  tag.dataset.side = x > 0.6 ? "left" : x < 0.4 ? "right" : "middle";
  return tag;
}

function shareOf(area) {
  return `${((100 * area) / (shown.tile.size[0] * shown.tile.size[1])).toFixed(1)} %`;
}

// Highlights a segment of the open row by its place in the list, from 1; 0 highlights none.
async function highlight(region) {
  shown.region = region;
  for (const line of field("detail-more").querySelectorAll("[data-region]")) {
    const own = Number(line.dataset.region) === region;
    line.setAttribute("aria-selected", own);
    line.querySelector("button").setAttribute("aria-pressed", own);
  }
  writeAddress();
  await showPicture(shown.picture);
}

function toggle(region) {
  highlight(region === shown.region ? 0 : region);
}

stage.addEventListener("click", async (event) => {
  if (!shown.picture) return;
  const { row, picture } = shown;
  const [width, height] = picture.pixels;
  const box = stage.getBoundingClientRect();
  const x = Math.floor(((event.clientX - box.left) / box.width) * width);
  const y = Math.floor(((event.clientY - box.top) / box.height) * height);
  if (x < 0 || y < 0 || x >= width || y >= height) return;
  const region = (await unpackRegions(picture))[y * width + x];
  if (shown.row === row) toggle(region <= shown.tile.segments.length ? region : 0);
});

field("actual").addEventListener("click", () => {
  const actual = stage.classList.toggle("actual");
  field("actual").setAttribute("aria-pressed", actual);
});

function fillDetail(row, tile) {
  const more = field("detail-more");
  if (tile.why) more.append(element("p", `No source image: ${tile.why}`, "note"));
  more.append(element("p", `${tile.size[0]} × ${tile.size[1]} pixels, ${row.segments} segments, confidence ${row.confidence.toFixed(2)}`));
  if (!tile.full && Math.max(...tile.size) > Math.max(...tile.pixels)) {
    const limit = report.run.fullSizeRows.toLocaleString("en");
    more.append(element("p", `The picture is reduced: pages of at most ${limit} rows have pictures in full size. ` +
      "Select fewer rows with --keys.", "quiet"));
  }
  if (tile.levels) more.append(levelSlider(row, tile));
  more.append(segmentTable(tile));
  if (tile.segments.length < row.segments) {
    more.append(element("p", `and ${row.segments - tile.segments.length} smaller segments`, "quiet"));
  }
  if (Object.keys(tile.scores).length) more.append(scoreTable(tile.scores));
  if (tile.meta && tile.meta !== "{}") more.append(element("pre", tile.meta));
}

function headOf(texts) {
  const head = element("thead");
  const line = element("tr");
  for (const text of texts) line.append(element("th", text));
  head.append(line);
  return head;
}

function segmentTable(tile) {
  const named = tile.segments.some((segment) => segment[3] !== null);
  const table = element("table", "", "segments");
  const body = element("tbody");
  tile.segments.forEach((segment, place) => {
    const [id, area, confidence, name, score] = segment;
    const line = element("tr");
    line.dataset.region = place + 1;
    const chip = element("button", "", "chip");
    chip.type = "button";
    chip.title = "Highlight this segment";
    chip.append(element("bdi", name ?? String(id)));
    chip.style.background = colourOf(segment);
    chip.style.color = inkOn(colourOf(segment));
    const first = element("td");
    first.append(chip);
    line.append(first, element("td", shareOf(area), "number"), element("td", confidence.toFixed(2), "number"));
    if (named) line.append(element("td", score?.toFixed(2) ?? "", "number"));
    line.addEventListener("click", () => toggle(place + 1));
    body.append(line);
  });
  table.append(headOf(["segment", "share", "confidence", ...(named ? ["score"] : [])]), body);
  return table;
}

// Returns a table with a line for each evaluation of the run.
function scoreTable(scores) {
  const table = element("table", "", "scores");
  const body = element("tbody");
  for (const [number, name] of report.run.scores.entries()) {
    const line = element("tr");
    line.append(element("th", name.replaceAll("_", " ")));
    for (const values of Object.values(scores)) {
      line.append(element("td", values[number] === null ? "" : String(Number(values[number].toFixed(3))), "number"));
    }
    body.append(line);
  }
  table.append(headOf(["score", ...Object.keys(scores)]), body);
  return table;
}
