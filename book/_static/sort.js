/* Long tables sort by a click on a heading, or Enter or Space on it; a second one turns the order around. */
"use strict";
(() => {
  const LONG = 8;  // rows from which sorting helps
  const words = new Intl.Collator("en", { numeric: true });

  /* by the number that a cell begins with, then as text; cells without anything come last in either order */
  function compare(one, other, down) {
    const empty = [one, other].map((text) => text === "" || text === "–");
    if (empty[0] || empty[1]) return empty[0] - empty[1];
    const [a, b] = [one, other].map((text) => parseFloat(text.replaceAll(",", "").replace("−", "-")));
    const order = Number.isNaN(a) || Number.isNaN(b) || a === b ? words.compare(one, other) : a - b;
    return down ? -order : order;
  }

  function sort(table, column, heading) {
    const down = heading.getAttribute("aria-sort") === "ascending", body = table.tBodies[0];
    const text = (row) => row.cells[column].textContent.trim();
    const rows = [...body.rows].sort((one, other) => compare(text(one), text(other), down));
    for (const each of heading.parentNode.cells) each.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    rows.forEach((row, place) => row.classList.replace(place % 2 ? "row-even" : "row-odd", place % 2 ? "row-odd" : "row-even"));
    body.append(...rows);
  }

  function start(table) {
    const [head] = table.tHead?.rows ?? [];
    if (!head || table.tHead.rows.length > 1 || !table.tBodies[0] || table.tBodies[0].rows.length < LONG) return;
    [...head.cells].forEach((heading, column) => {
      if (heading.textContent.trim() === "") return;
      const button = Object.assign(document.createElement("button"), { type: "button", className: "sorts" });
      button.append(...(heading.querySelector("p") ?? heading).childNodes);
      button.addEventListener("click", () => sort(table, column, heading));
      heading.replaceChildren(button);
    });
  }

  document.addEventListener("DOMContentLoaded", () => document.querySelectorAll(".bd-content table.table").forEach(start));
})();
