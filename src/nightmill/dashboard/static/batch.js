// The code of a batch with the address by which this browser reaches the server: a proxy may add a scheme, a
// name and a path that the server does not know.
"use strict";

(() => {
  const section = document.querySelector("[data-base-url]");
  const known = section?.dataset.baseUrl;
  const reached = new URL("v1", document.baseURI).href;
  // Nothing that a shell or a string of Python would read as more than an address.
  if (!known || known === reached || !/^[\w:/.~%[\]-]+$/.test(reached)) return;
  for (const code of section.querySelectorAll("pre code")) code.textContent = code.textContent.replaceAll(known, reached);
  for (const button of section.querySelectorAll("[data-copy]")) button.dataset.copy = button.dataset.copy.replaceAll(known, reached);
})();
