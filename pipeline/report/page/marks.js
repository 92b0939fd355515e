// Marked samples, whose keys can be saved for --keys. The browser remembers them by the fingerprint of the run.
"use strict";

const MAX_KEY = 1000; // longer keys are cut in the list of rows, so they cannot be found again

const marks = { keys: new Set() };
const storageName = () => `diffseg marks of ${report.run.fingerprint}`;

// A browser may keep nothing for pages from a disk; then marks last as long as the page is open.
function restoreMarks() {
  try {
    marks.keys = new Set(JSON.parse(localStorage.getItem(storageName()) ?? "[]"));
  } catch {
    marks.keys = new Set();
  }
  showMarks();
}

function mark(row, marked) {
  if (marked) marks.keys.add(row.key);
  else marks.keys.delete(row.key);
  keepMarks();
  for (const box of grid.querySelectorAll("[data-mark]")) {
    const { key } = gallery.rows[box.closest("li").firstChild.dataset.position];
    if (key === row.key) box.checked = marked;
  }
  if (shown.row?.key === row.key) field("detail-mark").checked = marked;
}

function keepMarks() {
  try {
    localStorage.setItem(storageName(), JSON.stringify([...marks.keys]));
  } catch {
    // see restoreMarks
  }
  showMarks();
}

function showMarks() {
  const count = marks.keys.size;
  field("marks").hidden = count === 0;
  field("marked-count").textContent = `${count.toLocaleString("en")} marked`;
}

// Saves a file with a key in each line.
function saveKeys() {
  const usable = [...marks.keys].filter((key) => key.length < MAX_KEY && !/[\r\n]/.test(key));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(usable.map((key) => `${key}\n`), { type: "text/plain" }));
  link.download = "keys.txt";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  const left = marks.keys.size - usable.length;
  const counted = (count) => `${count.toLocaleString("en")} key${count === 1 ? "" : "s"}`;
  const rest = left ? `; ${counted(left)} left out, because a line cannot hold them` : "";
  field("saved").textContent = `keys.txt has ${counted(usable.length)}, for --keys of export, train and report${rest}`;
}

field("save-keys").addEventListener("click", saveKeys);
field("clear-marks").addEventListener("click", () => {
  marks.keys.clear();
  field("saved").textContent = "";
  keepMarks();
  for (const box of document.querySelectorAll("[data-mark]")) box.checked = false;
  filter();
});
