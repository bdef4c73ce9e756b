// The list of batches: which rows are selected, menus that close, views that this browser keeps, and the title of
// the tab. Without this script the same forms work with the boxes of the rows.
"use strict";

(() => {
  const STORED_VIEWS = "nightmill.views";
  const chosen = new Set();
  const form = () => document.getElementById("bulk");
  const all = () => document.getElementById("all-matching");
  const boxes = () => [...document.querySelectorAll('.batches input[name="ids"]')];
  let last = null;

  document.documentElement.classList.add("scripted");

  // --- selection ------------------------------------------------------------------------------------------
  // A row may leave the page while it is selected: the selection is kept here and not in the boxes.
  function show() {
    if (!form()) return;
    const takesAll = Boolean(all()?.checked);
    for (const box of boxes()) {
      box.checked = takesAll || chosen.has(box.value);
      box.closest("tbody").classList.toggle("picked", box.checked);
    }
    const count = takesAll ? Number(document.querySelector("[data-matching]").dataset.matching) : chosen.size;
    const text = takesAll ? `All ${count.toLocaleString("en")} matching:` : count ? `${count.toLocaleString("en")} selected:` : "Select batches, then:";
    const place = document.getElementById("chosen-count");
    if (place.textContent !== text) place.textContent = text;
    form().querySelectorAll("[data-bulk]").forEach((button) => (button.disabled = !count));
    const page = document.getElementById("pick-page");
    if (page) {
      const on = boxes().filter((box) => box.checked).length;
      page.checked = on > 0 && on === boxes().length;
      page.indeterminate = on > 0 && !page.checked;
    }
  }

  function choose(box, isOn) {
    if (isOn) chosen.add(box.value);
    else chosen.delete(box.value);
  }

  document.addEventListener("click", (event) => {
    const box = event.target;
    if (!box.matches?.('.batches input[name="ids"]')) return;
    const list = boxes();
    const [from, to] = [list.findIndex((one) => one.value === last), list.indexOf(box)].sort((a, b) => a - b);
    if (event.shiftKey && from >= 0) list.slice(from, to + 1).forEach((one) => choose(one, box.checked));
    last = box.value;
  });

  document.addEventListener("change", (event) => {
    const box = event.target;
    if (box.id === "pick-page") boxes().forEach((one) => choose(one, box.checked));
    else if (box.matches('.batches input[name="ids"]')) choose(box, box.checked);
    else if (box.id !== "all-matching") return;
    if (all()?.checked && box.id !== "all-matching") {
      // From "all" to some: those of the page that are still ticked.
      all().checked = false;
      if (box.id !== "pick-page") boxes().forEach((one) => choose(one, one.checked));
    }
    show();
  });

  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    const open = document.querySelector("details.menu[open]");
    if (open) {
      open.open = false;
      open.querySelector("summary").focus();
      return;
    }
    chosen.clear();
    if (all()) all().checked = false;
    show();
  });

  document.addEventListener("submit", (event) => {
    if (event.target !== form()) return;
    form().querySelectorAll("input[data-added]").forEach((one) => one.remove());
    const takesAll = all().checked;
    const shown = new Set(boxes().map((box) => box.value));
    boxes().forEach((box) => (box.disabled = takesAll));
    if (takesAll) return;
    for (const id of chosen) {
      if (shown.has(id)) continue;
      const field = document.createElement("input");
      Object.assign(field, { type: "hidden", name: "ids", value: id });
      field.dataset.added = "";
      form().append(field);
    }
  });

  // --- menus ----------------------------------------------------------------------------------------------
  document.addEventListener("click", (event) => {
    document.querySelectorAll("details.menu[open]").forEach((menu) => {
      if (!menu.contains(event.target)) menu.open = false;
    });
    const button = event.target.closest("[data-copy-address], [data-keep-view], [data-forget]");
    if (!button) return;
    if (button.dataset.copyAddress !== undefined) nightmill.copy(location.href);
    else if (button.dataset.forget !== undefined) keep(views().filter((view) => view.name !== button.dataset.forget));
    else {
      const name = prompt("Name of this view", document.querySelector(".applied")?.innerText.split("×")[0].trim() || "");
      if (name?.trim()) keep([...views().filter((view) => view.name !== name.trim()), { name: name.trim(), query: location.search }]);
    }
  });

  // --- views that this browser keeps ----------------------------------------------------------------------
  function views() {
    try {
      const found = JSON.parse(localStorage.getItem(STORED_VIEWS) || "[]");
      return Array.isArray(found) ? found.filter((view) => typeof view?.name === "string" && typeof view?.query === "string") : [];
    } catch {
      return [];
    }
  }

  function keep(found) {
    try {
      localStorage.setItem(STORED_VIEWS, JSON.stringify(found));
    } catch {
      nightmill.say("The browser does not allow to keep views here.");
    }
    listViews();
  }

  function listViews() {
    const place = document.getElementById("own-views");
    if (!place) return;
    place.hidden = !views().length;
    place.replaceChildren(
      ...views().map((view) => {
        const row = document.createElement("div");
        const link = document.createElement("a");
        const forget = document.createElement("button");
        row.className = "own-view";
        link.href = "./" + (view.query.startsWith("?") ? view.query : "");
        link.textContent = view.name;
        forget.type = "button";
        forget.className = "link";
        forget.dataset.forget = view.name;
        forget.setAttribute("aria-label", `Forget the view ${view.name}`);
        forget.textContent = "×";
        row.append(link, forget);
        return row;
      })
    );
  }

  // --- time zone and title --------------------------------------------------------------------------------
  // "Last night" is a night where the reader is.
  function addZone() {
    const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
    if (!zone) return;
    document.querySelectorAll("a[data-zoned]").forEach((link) => {
      const [path, query] = link.getAttribute("href").split("?");
      const names = new URLSearchParams(query || "");
      if (!names.has("tz") && names.get("range") === "night") {
        names.set("tz", zone);
        link.setAttribute("href", `${path}?${names}`);
      }
    });
    document.querySelectorAll("form[data-zoned]").forEach((form) => {
      if (form.elements.namedItem("tz")) return;
      const field = document.createElement("input");
      Object.assign(field, { type: "hidden", name: "tz", value: zone });
      form.append(field);
    });
  }

  const title = document.title;
  function refresh() {
    const tab = document.querySelector("[data-tab]")?.dataset.tab;
    const text = tab ? `${tab} · ${title}` : title;
    if (document.title !== text) document.title = text;
    show();
  }

  window.addEventListener("pageshow", () => {
    boxes().forEach((box) => (box.disabled = false));
    refresh();
  });
  document.addEventListener("htmx:after:swap", refresh);
  document.addEventListener("htmx:sse:after:message", refresh);
  document.addEventListener("DOMContentLoaded", () => {
    addZone();
    listViews();
    refresh();
  });
})();
