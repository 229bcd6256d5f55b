"use strict";
// Comforts only: the page says everything without this.
document.documentElement.classList.add("js");
const rows = Array.from(document.querySelectorAll("#pairs tbody tr"));
const field = document.getElementById("find");
field.addEventListener("input", () => {
  const wanted = field.value.trim().toLowerCase();
  for (const row of rows) {
    const hit = row.dataset.find.toLowerCase().includes(wanted);
    row.hidden = !hit;
    const section = document.getElementById("pair-" + row.dataset.number);
    if (section) section.hidden = !hit;
  }
});
const open = document.getElementById("open");
open.addEventListener("click", () => {
  const all = Array.from(document.querySelectorAll(".pair details"));
  const shut = all.some((item) => !item.open);
  for (const item of all) item.open = shut;
  open.textContent = shut ? "Close all texts" : "Open all texts";
});
for (const head of document.querySelectorAll("#pairs th[data-sort]")) {
  const sort = () => {
    const at = head.cellIndex;
    const down = head.getAttribute("aria-sort") !== "descending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[at].dataset.value ?? row.cells[at].textContent.trim();
    const sorted = rows.slice().sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = head.dataset.sort === "text" ? y.localeCompare(x) : Number(y) - Number(x);
      return down ? order : -order;
    });
    for (const row of sorted) row.parentNode.append(row);
  };
  head.tabIndex = 0;
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
}
