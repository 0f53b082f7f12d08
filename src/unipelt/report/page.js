// A click on a column's head sorts its table: numbers by size, largest first, then texts; empty cells stay last.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const now = head.getAttribute("aria-sort");
    const numeric = [...body.rows].some((row) => row.cells[column].dataset.value !== undefined);
    const next = now === "descending" ? "ascending" : now === "ascending" ? "descending" : numeric ? "descending" : "ascending";
    const sign = next === "ascending" ? 1 : -1;
    const key = (row) => row.cells[column].dataset.value === undefined ? null : Number(row.cells[column].dataset.value);
    const rows = [...body.rows].sort((one, other) => {
      const [a, b] = [key(one), key(other)];
      if (a !== null && b !== null) return sign * (a - b);
      if (a === null && b === null) return numeric ? 0 : sign * one.cells[column].textContent.localeCompare(other.cells[column].textContent, "en", { numeric: true });
      return a === null ? 1 : -1;
    });
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", next);
    body.append(...rows);
  }));
}
