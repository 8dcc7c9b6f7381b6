"use strict";
// A click on a header sorts by it, the best first, a second click the other way round. Rows
// without a value come last either way; rows that are alike keep the order of the ranking.
const words = new Intl.Collator("en", { numeric: true });
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  const ranked = [...table.tBodies[0].rows];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const first = header.dataset.first;
      const second = first === "ascending" ? "descending" : "ascending";
      const order = header.getAttribute("aria-sort") === first ? second : first;
      for (const each of headers) each.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const value = (row) => row.cells[column].dataset.value;
      const compare = (one, other) => {
        const [x, y] = [value(one), value(other)];
        if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
        return sign * ("words" in header.dataset ? words.compare(x, y) : x - y);
      };
      table.tBodies[0].append(...[...ranked].sort(compare));
    });
  });
}
