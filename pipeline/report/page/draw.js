// Draws the segments of a picture. A map of regions has a byte for each pixel: 0 in no segment, k in the k-th segment
// of the row, 255 in one of the segments that are not listed.
"use strict";

const OTHERS = "#8a8a8a";
const DIMMED = 0.2; // brightness of the segments beside a highlighted one
const DIMMED_OPACITY = 200; // their opacity, 0 to 255

// Returns the map of a picture, width * height bytes.
function unpackRegions(picture) {
  picture.map ??= (async () => {
    const packed = Uint8Array.from(atob(picture.regions), (character) => character.charCodeAt(0));
    const bytes = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(bytes).arrayBuffer());
  })();
  return picture.map;
}

// Returns the colour of a segment as #rrggbb: that of its name, which is the same on the whole page, or its own.
function colourOf([, , , name, , colour]) {
  return (name === null ? colour : report.colours.get(name)) ?? OTHERS;
}

function channels(colour) {
  return [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
}

// Returns black or white, whichever is easier to read on a colour. The contrast (WCAG 2) is 4.5 or more on any colour.
function inkOn(colour) {
  const [red, green, blue] = channels(colour).map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 ? "#000000" : "#ffffff";
}

// Draws a map with white borders on a canvas. With `region` above 0, that segment stands out and the others are dimmed.
function drawRegions(canvas, [width, height], map, segments, region = 0) {
  canvas.width = width;
  canvas.height = height;
  const palette = new Uint32Array(256);
  const entries = new Uint8Array(palette.buffer);
  for (let number = 1; number < 256; number++) {
    const colour = channels(number <= segments.length ? colourOf(segments[number - 1]) : OTHERS);
    const bright = region === 0 || number === region;
    entries.set(bright ? [...colour, 255] : [...colour.map((value) => DIMMED * value), DIMMED_OPACITY], 4 * number);
  }
  const pixels = new Uint32Array(width * height);
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at++) {
      const own = map[at];
      const right = x + 1 < width ? map[at + 1] : own;
      const below = y + 1 < height ? map[at + width] : own;
      const border = (own !== right || own !== below) && own !== 0;
      const near = region === 0 || own === region || right === region || below === region;
      pixels[at] = border && near ? 0xffffffff : palette[own];
    }
  }
  canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels.buffer), width, height), 0, 0);
}

// Returns the position, 0 to 1 from the left and the top, of a pixel in the middle of a segment; null if it has none.
function middleOf([width, height], map, region) {
  const found = [];
  for (let at = 0; at < map.length; at++) if (map[at] === region) found.push(at);
  if (found.length === 0) return null;
  const middle = found[found.length >> 1];
  // The middle row of the segment, and there the middle of its pixels.
  const row = Math.floor(middle / width);
  const columns = found.filter((at) => Math.floor(at / width) === row);
  return [((columns[columns.length >> 1] % width) + 0.5) / width, (row + 0.5) / height];
}
