// The dialog of one sample: image, overlay and mask side by side, and the fields of its row.
"use strict";

const detail = document.getElementById("detail");
const shown = { position: -1 };

function element(name, text = "", className = "") {
  const created = document.createElement(name);
  created.textContent = text;
  if (className) created.className = className;
  return created;
}

async function openDetail(position) {
  if (position < 0 || position >= gallery.rows.length) return;
  shown.position = position;
  const row = gallery.rows[position];
  field("detail-key").textContent = row.key;
  const where = `row ${row.index} of shard ${report.run.shards[row.part]}`;
  field("detail-facts").textContent = `${where} · ${position + 1} of ${gallery.rows.length}`;
  field("detail-pictures").replaceChildren();
  field("detail-more").replaceChildren();
  field("before").disabled = position === 0;
  field("after").disabled = position === gallery.rows.length - 1;
  if (!detail.open) detail.showModal();
  if (row.tile < 0) {
    field("detail-more").append(element("p", `${row.status}: ${row.error}`, "note"));
    return;
  }
  try {
    const tile = await loadTile(row);
    if (shown.position === position) fillDetail(row, tile);
  } catch (error) {
    field("detail-more").append(element("p", error.message, "note"));
  }
}

function fillDetail(row, tile) {
  const panes = tile.photograph
    ? [["image", sourceImageOf(row, tile)], ["overlay", ...layers(row, tile)], ["mask", maskOf(row, tile)]]
    : [["mask", maskOf(row, tile)]];
  for (const [look, ...images] of panes) {
    const pane = element("figure", "", "pane");
    const picture = element("span", "", "picture");
    picture.dataset.look = look;
    picture.style.aspectRatio = `${tile.size[0]} / ${tile.size[1]}`;
    picture.append(...images);
    pane.append(picture, element("figcaption", look));
    field("detail-pictures").append(pane);
  }
  const more = field("detail-more");
  if (tile.why) more.append(element("p", `No source image: ${tile.why}`, "note"));
  const size = `${tile.size[0]} × ${tile.size[1]} pixels`;
  more.append(element("p", `${size}, ${row.segments} segments, confidence ${row.confidence.toFixed(2)}`));
  more.append(segmentTable(row, tile));
  if (tile.segments.length < row.segments) {
    more.append(element("p", `and ${row.segments - tile.segments.length} smaller segments`, "quiet"));
  }
  if (tile.meta && tile.meta !== "{}") more.append(element("pre", tile.meta));
}

function segmentTable(row, tile) {
  const named = tile.segments.some((segment) => segment[3]);
  const table = element("table", "", "segments");
  const heads = ["segment", "share", "confidence", ...(named ? ["name", "score"] : [])];
  const head = element("tr");
  for (const text of heads) head.append(element("th", text));
  const body = element("tbody");
  for (const [id, area, confidence, name, score, colour] of tile.segments) {
    const line = element("tr");
    const first = element("td");
    const swatch = element("span", "", "swatch");
    swatch.style.background = colour;
    first.append(swatch, String(id));
    const share = `${((100 * area) / (tile.size[0] * tile.size[1])).toFixed(1)} %`;
    line.append(first, element("td", share, "number"), element("td", confidence.toFixed(2), "number"));
    if (named) line.append(element("td", name ?? ""), element("td", score?.toFixed(2) ?? "", "number"));
    body.append(line);
  }
  const top = element("thead");
  top.append(head);
  table.append(top, body);
  return table;
}
