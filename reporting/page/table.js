"use strict";
/* Tables that sort by a click on a header, worst first. */

/* columns: {title, cell(row) -> text or element, value(row) -> what to sort by, lower: smaller is better,
   shade(row) -> 0 (good) to 1 (bad), numeric}. The table is sorted by column `by`; without it, it keeps its order. */
function sortableTable(container, { caption, columns, rows, by = null }) {
  const body = el("tbody");
  let sorted = { column: by, worstFirst: true };
  const headers = columns.map((column, k) => el("th", { scope: "col", class: column.numeric ? "number" : null },
    el("button", { type: "button", onclick: () => sort(k, sorted.column === k ? !sorted.worstFirst : true) },
      column.title)));

  function sort(k, worstFirst) {
    sorted = { column: k, worstFirst };
    const { value, lower, numeric } = columns[k];
    const ascending = numeric ? worstFirst !== Boolean(lower) : worstFirst;
    const order = (a, b) => (typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
    const missing = (row) => value(row) === null || value(row) === undefined;
    rows = [...rows].sort((a, b) => missing(a) - missing(b)
      || (missing(a) ? 0 : (ascending ? 1 : -1) * order(value(a), value(b))));
    headers.forEach((header, h) => {
      if (h === k) header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      else header.removeAttribute("aria-sort");
    });
    fill();
  }

  function fill() {
    body.replaceChildren(...rows.map((row) => el("tr", {}, ...columns.map((column, k) => {
      const shade = column.shade?.(row);
      const style = known(shade) ? { "--shade": `${Math.round(45 * Math.max(0, Math.min(1, shade)))}%` } : {};
      const attributes = { class: [column.numeric ? "number" : "", known(shade) ? "shaded" : ""].join(" ").trim() || null, style };
      return k === 0 ? el("th", { scope: "row", ...attributes }, column.cell(row)) : el("td", attributes, column.cell(row));
    }))));
  }

  container.replaceChildren(scrolling(caption, el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, ...headers)), body)));
  if (by === null) fill();
  else sort(by, true);
}

/* value -> 0 (good) to 1 (bad), null where it is not known; `largest` is that of all. */
const badnessIn = (metric, largest) => (value) => (known(value) ? (metric.lower_is_better ? value / largest : 1 - value / 100) : null);

/* A table that never changes: header texts and rows of texts or elements, the first of each row its header. */
function plainTable(container, { caption, header, rows, numeric = true }) {
  const side = numeric ? "number" : null;
  container.replaceChildren(scrolling(caption, el("table", {}, el("caption", {}, caption),
    header && el("thead", {}, el("tr", {}, ...header.map((text, k) => el("th", { scope: "col", class: k ? side : null }, text)))),
    el("tbody", {}, ...rows.map(([first, ...rest]) => el("tr", {}, el("th", { scope: "row" }, first),
      ...rest.map((cell) => el("td", { class: side }, cell))))))));
}

/* A table that scrolls sideways where it is wide; its right side fades as long as there is more of it. */
function scrolling(caption, table) {
  const place = el("div", { class: "scrolling", tabindex: 0, role: "region", "aria-label": caption }, table);
  const mark = () => place.classList.toggle("more", place.scrollLeft + place.clientWidth < place.scrollWidth - 1);
  place.addEventListener("scroll", mark);
  drawAtWidth(place, mark);
  return place;
}
