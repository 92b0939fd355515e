// Loads the data files of the page on demand. They are scripts, because a page opened from disk can load nothing else.
"use strict";

const TILE_FILES_KEPT = 48;
const FULL_FILES_KEPT = 8;

const report = { folder: document.body.dataset.data };

const receivedData = new Map();

// Called by every data file.
function reportData(name, value) {
  receivedData.set(name, value);
}

function loadData(name) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `${report.folder}/${name}.js`;
    script.onload = () => {
      script.remove();
      const value = receivedData.get(name);
      receivedData.delete(name);
      if (value === undefined) reject(new Error(`${name}.js does not hold ${name}`));
      else resolve(value);
    };
    script.onerror = () => {
      script.remove();
      reject(new Error(`${name}.js cannot be loaded`));
    };
    document.head.append(script);
  });
}

// Files of pictures; the most recently used ones stay in memory.
const tileFiles = new Map();
const fullFiles = new Map();

function loadKept(files, name, kept) {
  const file = files.get(name) ?? loadData(name);
  files.delete(name);
  files.set(name, file);
  file.catch(() => files.delete(name)); // the next use loads it again
  if (files.size > kept) files.delete(files.keys().next().value);
  return file;
}

async function loadTile(row) {
  const number = Math.floor(row.tile / report.run.tilesAFile);
  const file = await loadKept(tileFiles, `tiles-${row.part}-${number}`, TILE_FILES_KEPT);
  return file[row.tile % report.run.tilesAFile];
}

// Returns the pictures of a row in full size.
function loadFull(row) {
  return loadKept(fullFiles, `full-${row.part}-${row.tile}`, FULL_FILES_KEPT);
}

function readRow(line, number) {
  const [key, part, index, status, error, segments = 0, confidence = 0, tile = -1, names = [], covering = {}] = line;
  const text = report.run.statuses[status];
  return { number, key, part, index, status: text, error, segments, confidence, tile, names, covering };
}

// Loads the list of rows file by file, and calls `onRows` after each file.
async function loadRows(onRows) {
  report.run = await loadData("run");
  report.colours = new Map(report.run.names);
  report.rows = [];
  onRows();
  for (let number = 0; number < report.run.rowFiles; number++) {
    for (const line of await loadData(`rows-${number}`)) report.rows.push(readRow(line, report.rows.length));
    onRows();
  }
}
