// The slider of a sample in a run with levels: it shows the segments after any number of merges.
"use strict";

// Returns the groups of leaves after some merges, as segments like those of a tile, the largest first, and the number
// of each leaf's segment, from 1.
function segmentsAfter(levels, merges) {
  const groups = levels.areas.map((area, leaf) => ({ node: leaf, leaves: [leaf] }));
  const ofNode = new Map(groups.map((group) => [group.node, group]));
  levels.pairs.slice(0, merges).forEach(([a, b], merge) => {
    const node = levels.areas.length + merge;
    ofNode.set(node, { node, leaves: [...ofNode.get(a).leaves, ...ofNode.get(b).leaves] });
    ofNode.delete(a);
    ofNode.delete(b);
  });
  const areaOf = ({ leaves }) => leaves.reduce((sum, leaf) => sum + levels.areas[leaf], 0);
  const sorted = [...ofNode.values()].sort((one, other) => areaOf(other) - areaOf(one));
  const numbers = new Uint8Array(levels.areas.length + 1);
  const segments = sorted.map((group, place) => {
    for (const leaf of group.leaves) numbers[leaf + 1] = place + 1;
    const largest = group.leaves.reduce((best, leaf) => (levels.areas[leaf] > levels.areas[best] ? leaf : best));
    return [place, areaOf(group), levels.confidences[group.node], null, null, levels.colours[largest]];
  });
  return { segments, numbers };
}

// Draws the open row at a level; at the level of the row itself its picture is shown as before.
async function showLevel(row, tile, merges) {
  const { levels } = tile;
  if (merges === levels.own) return shown.picture ? showPicture(shown.picture) : undefined;
  const { segments, numbers } = segmentsAfter(levels, merges);
  levels.picture ??= { regions: levels.leaves };
  const leaves = await unpackRegions(levels.picture);
  const picture = { pixels: tile.pixels, photograph: tile.photograph, map: leaves.map((leaf) => numbers[leaf]) };
  const images = await layers(row, { ...tile, segments }, picture);
  if (shown.row === row && shown.level === merges) stage.replaceChildren(...images);
}

function levelText(levels, merges) {
  const count = levels.areas.length - merges;
  const below = merges === 0 ? "the finest level" : `merged up to ${levels.heights[merges - 1]}`;
  return `${count} segment${count === 1 ? "" : "s"}, ${merges === levels.own ? "the level of the run" : below}`;
}

// Returns a slider from the finest level to one segment.
function levelSlider(row, tile) {
  const { levels } = tile;
  const box = element("label", "Level ", "level");
  const slider = document.createElement("input");
  slider.type = "range";
  slider.id = "level";
  slider.min = 0;
  slider.max = levels.pairs.length;
  slider.value = shown.level = levels.own;
  const text = element("output", levelText(levels, levels.own));
  slider.addEventListener("keydown", (event) => event.stopPropagation()); // arrows move the slider, not the gallery
  slider.addEventListener("input", () => {
    shown.level = Number(slider.value);
    text.textContent = levelText(levels, shown.level);
    showLevel(row, tile, shown.level);
  });
  box.append(slider, " ", text);
  return box;
}
