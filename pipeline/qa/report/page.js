"use strict";

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  heads.forEach((head, column) => {
    const numeric = head.classList.contains("n");
    const value = (row) => {
      const cell = row.cells[column];
      return numeric ? parseFloat(cell.dataset.value) : cell.textContent;
    };
    head.querySelector("button").addEventListener("click", () => {
      const first = numeric ? "descending" : "ascending";
      const second = numeric ? "ascending" : "descending";
      const order = head.getAttribute("aria-sort") === first ? second : first;
      const sign = order === "ascending" ? 1 : -1;
      const compare = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (!numeric) return sign * x.localeCompare(y);
        if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y); // what was not measured comes last
        return sign * (x - y);
      };
      body.append(...[...body.rows].sort(compare));
      heads.forEach((other) => other.setAttribute("aria-sort", other === head ? order : "none"));
    });
  });
}

const dialog = document.getElementById("zoom");
const exhibits = [...document.querySelectorAll(".exhibit")];
let shown = 0;

function show(number) {
  shown = (number + exhibits.length) % exhibits.length;
  const exhibit = exhibits[shown];
  const key = exhibit.querySelector(".key");
  document.getElementById("zoom-title").textContent = `${key.textContent} in ${key.dataset.shard}`;
  const figures = [...exhibit.querySelectorAll("img")].map((picture) => {
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    caption.textContent = picture.dataset.label;
    figure.append(picture.cloneNode(), caption);
    return figure;
  });
  dialog.querySelector(".pictures").replaceChildren(...figures);
  dialog.querySelector(".facts").innerHTML = exhibit.querySelector(".facts").innerHTML;
}

function step(by) {
  if (by === 0) dialog.close();
  else show(shown + by);
}

exhibits.forEach((exhibit, number) => {
  exhibit.querySelector(".zoom").addEventListener("click", () => {
    show(number);
    dialog.showModal();
  });
});
for (const button of dialog.querySelectorAll("[data-step]")) {
  button.addEventListener("click", () => step(Number(button.dataset.step)));
}
dialog.addEventListener("click", (event) => {
  if (event.target === dialog) dialog.close(); // the backdrop
});
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
dialog.addEventListener("close", () => exhibits[shown].querySelector(".zoom").focus());
