// Sort tables by a column, filter their rows by words, and copy commands.
"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  const sortKey = (cell) => {
    const value = cell?.dataset.value;
    if (value === undefined || value === "") return null;
    const number = Number(value);
    return Number.isNaN(number) ? value : number;
  };

  // Numbers come before text, and missing values last in both directions (1 ascending, -1 descending).
  const compare = (a, b, direction) => {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return direction * (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
  };

  const sort = (table, heading) => {
    const direction = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    all("thead th", table).forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
    const keyedRows = [...table.tBodies[0].rows].map((row) => [sortKey(row.cells[heading.cellIndex]), row]);
    keyedRows.sort(([a], [b]) => compare(a, b, direction));
    table.tBodies[0].append(...keyedRows.map(([, row]) => row));
  };

  const filter = (table, text, count) => {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = [...table.tBodies[0].rows];
    for (const row of rows) {
      const searched = `${row.textContent} ${row.dataset.search}`.toLowerCase();
      row.hidden = !words.every((word) => searched.includes(word));
    }
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} ${rows.length === 1 ? "row" : "rows"}`;
  };

  // Let an error span the visible columns; if it spanned more, the table would become wider than its headings.
  const spanErrors = (table) => {
    const shown = all("thead th", table).filter((heading) => getComputedStyle(heading).display !== "none").length;
    for (const cell of all("[data-spans]", table)) cell.colSpan = Math.max(1, shown - cell.parentNode.cells.length + 1);
  };

  // Say that a table scrolls sideways where it does.
  const markScrolling = () => {
    for (const box of all(".scroll")) box.classList.toggle("scrolls", box.scrollWidth > box.clientWidth + 1);
  };

  const copy = async (button) => {
    const command = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(command.textContent);
      button.textContent = "copied";
    } catch {
      // Some browsers deny a local file access to the clipboard; select the text, so that the reader can copy it.
      getSelection().selectAllChildren(command);
      button.textContent = "selected";
    }
  };

  for (const table of all("table")) {
    for (const button of all("thead button", table)) {
      button.addEventListener("click", () => sort(table, button.closest("th")));
    }
    spanErrors(table);
  }
  for (const box of all("[data-filters]")) {
    const table = document.getElementById(box.dataset.filters);
    const count = document.querySelector(`[data-counts="${box.dataset.filters}"]`);
    box.addEventListener("input", () => filter(table, box.value, count));
    filter(table, box.value, count);
  }
  for (const box of all("[data-widens]")) {
    const table = document.getElementById(box.dataset.widens);
    const update = () => {
      table.classList.toggle("wide", box.checked);
      spanErrors(table);
      markScrolling();
    };
    box.addEventListener("change", update);
    update();
  }
  addEventListener("resize", markScrolling);
  markScrolling();
  for (const button of all("button.copy")) button.addEventListener("click", () => copy(button));
})();
