// Loads the data files of the page on demand. They are scripts, because a page opened from disk can load nothing else.
"use strict";

const report = { folder: document.body.dataset.data, tilesKept: 48 };

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

async function loadTile(row) {
  const number = Math.floor(row.tile / report.run.tilesAFile);
  const name = `tiles-${row.part}-${number}`;
  const file = tileFiles.get(name) ?? loadData(name);
  tileFiles.delete(name);
  tileFiles.set(name, file);
  file.catch(() => tileFiles.delete(name)); // the next use loads it again
  if (tileFiles.size > report.tilesKept) tileFiles.delete(tileFiles.keys().next().value);
  return (await file)[row.tile % report.run.tilesAFile];
}

function readRow(line, number) {
  const [key, part, index, status, error, segments = 0, confidence = 0, tile = -1, names = []] = line;
  return { number, key, part, index, status: report.run.statuses[status], error, segments, confidence, tile, names };
}

// Loads the list of rows file by file, and calls `onRows` after each file.
async function loadRows(onRows) {
  report.run = await loadData("run");
  report.rows = [];
  onRows();
  for (let number = 0; number < report.run.rowFiles; number++) {
    for (const line of await loadData(`rows-${number}`)) report.rows.push(readRow(line, report.rows.length));
    onRows();
  }
}
