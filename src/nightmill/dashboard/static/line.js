// Keys of the screen of a line: [ and ] to its neighbours, { and } to the failed lines around it.
"use strict";

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey) return;
  if (event.target.closest("input, textarea, select")) return;
  const link = [...document.querySelectorAll("a[data-go]")].find((one) => one.dataset.go === event.key);
  if (link) {
    event.preventDefault();
    link.click();
  }
});
