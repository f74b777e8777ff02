// Sorts a table by its columns: a heading is a button that goes from up to down to the order as written.
// It only moves rows of its own page. The page's policy names this text by its hash and runs no other.
(() => {
  "use strict";
  const MISSING = new Set(["", "–", "—", "-", "nan", "none", "null", "n/a", "not measured"]);
  // 0.51 [0.47, 0.55] · 1,234 · 12 % · < 0.0001 · 3.2 s · ∞; only the first number counts.
  const NUMBER = /^[<>≤≥≈~]?\s*([+\-−]?)(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?(?:e[+\-]?\d+)?|\.\d+|∞)\s*(?:%|×|[a-zµ]{1,10})?\s*(?:\[.*\]|\(.*\))?$/i;
  const words = new Intl.Collator("en", { numeric: true });
  const NEXT = { "": "ascending", ascending: "descending", descending: "" };

  // [0 number, 1 text, 2 missing; the value]: numbers stand before texts, what is missing last, either way.
  function keyOf(cell) {
    const text = (cell.dataset.sort ?? cell.textContent).trim();
    if (MISSING.has(text.toLowerCase())) return [2, ""];
    const found = NUMBER.exec(text);
    if (!found) return [1, text];
    const size = found[2] === "∞" ? Infinity : Number(found[2].replaceAll(",", ""));
    return [0, found[1] === "-" || found[1] === "−" ? -size : size];
  }

  function compare(a, b, sign) {
    if (a[0] !== b[0]) return a[0] - b[0];
    if (a[0] === 0) return a[1] === b[1] ? 0 : sign * (a[1] < b[1] ? -1 : 1);
    return a[0] === 1 ? sign * words.compare(a[1], b[1]) : 0;
  }

  function sortable(table) {
    if (!table.tHead || table.tHead.rows.length !== 1 || table.tBodies.length !== 1) return false;
    const rows = [...table.tBodies[0].rows];
    const whole = (row) =>
      row.cells.length === table.tHead.rows[0].cells.length &&
      [...row.cells].every((cell) => cell.colSpan === 1 && cell.rowSpan === 1);
    return rows.length > 1 && whole(table.tHead.rows[0]) && rows.every(whole) && !table.querySelector("table");
  }

  for (const table of document.querySelectorAll("table")) {
    if (!sortable(table)) continue;
    const body = table.tBodies[0];
    const written = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      if (head.tagName !== "TH" || head.querySelector("a, button")) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const order = NEXT[head.getAttribute("aria-sort") ?? ""];
        for (const other of heads) other.removeAttribute("aria-sort");
        if (order) head.setAttribute("aria-sort", order);
        const sign = order === "descending" ? -1 : 1;
        const keys = new Map(written.map((row) => [row, keyOf(row.cells[column])]));
        const rows = order ? [...written].sort((a, b) => compare(keys.get(a), keys.get(b), sign)) : written;
        body.append(...rows);
      });
    });
  }
})();
