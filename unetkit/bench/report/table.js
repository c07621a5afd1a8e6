// Tables that sort by a heading and filter by words; buttons that copy.
"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  const key = (cell) => {
    const value = cell?.dataset.value;
    if (value === undefined || value === "") return null;
    const number = Number(value);
    return Number.isNaN(number) ? value : number;
  };

  // Numbers before words; what is missing is last whichever way the rest goes.
  const compare = (a, b, way) => {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return way * (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
  };

  const sort = (table, heading) => {
    const way = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    all("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", way === 1 ? "ascending" : "descending");
    const keyed = [...table.tBodies[0].rows].map((row) => [key(row.cells[heading.cellIndex]), row]);
    keyed.sort(([a], [b]) => compare(a, b, way));
    table.tBodies[0].append(...keyed.map(([, row]) => row));
  };

  const filter = (table, text, count) => {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = [...table.tBodies[0].rows];
    for (const row of rows) {
      const said = `${row.textContent} ${row.dataset.search}`.toLowerCase();
      row.hidden = !words.every((word) => said.includes(word));
    }
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
  };

  // A cause spans the columns that are shown: more would make the table wider than its headings.
  const span = (table) => {
    const shown = all("thead th", table).filter((heading) => getComputedStyle(heading).display !== "none").length;
    for (const cell of all("[data-wide]", table)) cell.colSpan = Math.max(1, shown - cell.parentNode.cells.length + 1);
  };

  const copy = async (button) => {
    const command = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(command.textContent);
      button.textContent = "copied";
    } catch {
      // Where a browser gives a file no clipboard, the text is marked for the reader's own copy.
      getSelection().selectAllChildren(command);
      button.textContent = "marked";
    }
  };

  for (const table of all("table")) {
    for (const button of all("thead button", table)) {
      button.addEventListener("click", () => sort(table, button.closest("th")));
    }
    span(table);
  }
  for (const box of all("[data-filters]")) {
    const table = document.getElementById(box.dataset.filters);
    const count = document.querySelector(`[data-counts="${box.dataset.filters}"]`);
    box.addEventListener("input", () => filter(table, box.value, count));
    filter(table, box.value, count);
  }
  for (const box of all("[data-widens]")) {
    const table = document.getElementById(box.dataset.widens);
    const widen = () => {
      table.classList.toggle("wide", box.checked);
      span(table);
    };
    box.addEventListener("change", widen);
    widen();
  }
  for (const button of all("button.copy")) button.addEventListener("click", () => copy(button));
})();
