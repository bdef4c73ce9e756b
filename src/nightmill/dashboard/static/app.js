// The dashboard in a browser: keyboard, copying, times that stay current, plots, and the state of the live
// updates. Every page works without this script, except that nothing moves by itself.
"use strict";

(() => {
  const rows = () => [...document.querySelectorAll("[data-row]")];
  let at = -1;

  // --- keyboard -------------------------------------------------------------------------------------------
  function goTo(place) {
    const all = rows();
    if (!all.length) return;
    at = Math.max(0, Math.min(place, all.length - 1));
    all.forEach((row, number) => row.classList.toggle("at", number === at));
    const target = all[at].querySelector("a");
    (target || all[at]).focus({ preventScroll: true });
    all[at].scrollIntoView({ block: "nearest" });
  }

  function currentRow() {
    const focused = document.activeElement && document.activeElement.closest("[data-row]");
    return focused || rows()[at];
  }

  const isTyping = (target) => target.closest("input:not([type=checkbox]), textarea, select, [contenteditable]");

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") {
      if (isTyping(event.target)) event.target.blur();
      document.querySelectorAll("[data-row] input[type=checkbox]:checked").forEach((box) => {
        box.checked = false;
        box.dispatchEvent(new Event("change", { bubbles: true }));
      });
      return;
    }
    if (isTyping(event.target)) return;
    const row = currentRow();
    const number = row ? rows().indexOf(row) : at;
    const keys = {
      "/": () => document.querySelector("[data-search]")?.focus(),
      j: () => goTo(number + 1),
      k: () => goTo(number - 1),
      x: () => row?.querySelector("input[type=checkbox]")?.click(),
      c: () => row?.dataset.id && copy(row.dataset.id),
      "?": () => showHelp(),
    };
    if (keys[event.key]) {
      event.preventDefault();
      keys[event.key]();
    }
  });

  function showHelp() {
    const help = document.getElementById("help");
    if (help && !help.open) help.showModal();
  }

  // --- notices and copying --------------------------------------------------------------------------------
  function say(text) {
    const notice = document.createElement("p");
    notice.className = "notice";
    notice.textContent = text;
    document.getElementById("notices").replaceChildren(notice);
    setTimeout(() => notice.remove(), 4000);
  }

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
      say("Copied: " + (text.length > 60 ? text.slice(0, 59) + "…" : text));
    } catch {
      say("The browser does not allow copying here.");
    }
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-copy], [data-help]");
    if (!button) return;
    if (button.dataset.copy !== undefined) copy(button.dataset.copy);
    else showHelp();
  });

  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-submit]")) event.target.form.requestSubmit();
  });

  // --- times ----------------------------------------------------------------------------------------------
  function inWords(apartS) {
    const s = Math.abs(apartS);
    const text =
      s < 60 ? Math.floor(s) + " s"
      : s < 3600 ? Math.floor(s / 60) + " min"
      : s < 172800 ? Math.floor(s / 3600) + " h"
      : Math.floor(s / 86400) + " d";
    return apartS >= 0 ? text + " ago" : "in " + text;
  }

  function refreshTimes() {
    for (const element of document.querySelectorAll("time[data-ago], time[data-coming]")) {
      const apartS = (Date.now() - Date.parse(element.dateTime)) / 1000;
      const text = apartS >= 0 && element.matches("[data-coming]") ? "any moment" : inWords(apartS);
      if (element.textContent !== text) element.textContent = text;
    }
  }
  setInterval(() => document.hidden || refreshTimes(), 1000);

  // --- plots ----------------------------------------------------------------------------------------------
  const plots = new Map();
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const classes = ["--flight", "--ok", "--failed", "--warn", "--quiet"];

  const two = (value) => String(value).padStart(2, "0");

  function clock(atS) {
    const t = new Date(atS * 1000);
    return two(t.getHours()) + ":" + two(t.getMinutes()) + ":" + two(t.getSeconds());
  }

  // The time of day where the plot shows less than a day, else the date; without the order of any one country.
  function inTicks(splits) {
    const wide = splits.length > 1 ? splits[1] - splits[0] : 60;
    return splits.map((at) => {
      const t = new Date(at * 1000);
      if (wide >= 86400) return two(t.getMonth() + 1) + "-" + two(t.getDate());
      return two(t.getHours()) + ":" + two(t.getMinutes()) + (wide < 60 ? ":" + two(t.getSeconds()) : "");
    });
  }

  function drawPlot(figure) {
    const given = figure.dataset.plot;
    const area = figure.querySelector(".plot-area");
    const drawn = plots.get(area);
    if (drawn && drawn.given === given) return;
    const { times, series } = JSON.parse(given);
    const data = [times, ...series.map((one) => one.values)];
    if (drawn && drawn.count === series.length) {
      drawn.plot.setData(data);
      drawn.given = given;
      return;
    }
    if (drawn) drawn.plot.destroy();
    const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false } };
    const options = {
      width: Math.max(area.clientWidth, 200),
      padding: [8, 28, 0, 0], // the last time on the axis is not cut
      height: Number(figure.dataset.height),
      cursor: { drag: { x: false, y: false } },
      axes: [{ ...axis, size: 28, space: 70, values: (_, splits) => inTicks(splits) }, { ...axis, size: 55, space: 25 }],
      // From 0, so that a small change does not look like a large one.
      scales: { y: { range: (_, least, most) => [Math.min(0, least), most > 0 ? most * 1.08 : 1] } },
      series: [
        { label: "at", value: (_, at) => (at == null ? "–" : clock(at)) },
        ...series.map((one, number) => ({
          label: one.label,
          stroke: colour(one.colour || classes[number % classes.length]),
          width: 1.5,
          value: (_, value) => (value == null ? "–" : Number(value.toPrecision(6)).toLocaleString("en")),
          points: { show: false },
        })),
      ],
    };
    plots.set(area, { plot: new uPlot(options, data, area), given, count: series.length });
  }

  function drawPlots() {
    for (const [area, drawn] of plots) {
      if (!area.isConnected) {
        drawn.plot.destroy();
        plots.delete(area);
      }
    }
    document.querySelectorAll("figure[data-plot]").forEach(drawPlot);
  }

  window.addEventListener("resize", () => {
    for (const [area, drawn] of plots) drawn.plot.setSize({ width: Math.max(area.clientWidth, 200), height: drawn.plot.height });
  });

  // --- paper: always the light theme ----------------------------------------------------------------------
  const root = document.documentElement;
  window.addEventListener("beforeprint", () => {
    root.dataset.screenTheme = root.dataset.theme || "";
    root.dataset.theme = "light";
  });
  window.addEventListener("afterprint", () => {
    if (root.dataset.screenTheme) root.dataset.theme = root.dataset.screenTheme;
    else delete root.dataset.theme;
    delete root.dataset.screenTheme;
  });

  // --- live updates ---------------------------------------------------------------------------------------
  function showState(state, text) {
    const element = document.getElementById("live-state");
    if (!element) return;
    element.dataset.state = state;
    if (element.textContent !== text) element.textContent = text;
  }
  document.addEventListener("htmx:sse:after:connection", () => showState("on", "live"));
  document.addEventListener("htmx:sse:error", () => showState("lost", "reconnecting"));
  document.addEventListener("htmx:sse:close", () => showState("lost", "not live"));
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) showState("off", "paused");
  });

  function refresh() {
    refreshTimes();
    drawPlots();
  }
  document.addEventListener("htmx:sse:after:message", refresh);
  document.addEventListener("htmx:after:swap", refresh);
  document.addEventListener("DOMContentLoaded", refresh);
  // On a phone the areas are one line that scrolls.
  document.addEventListener("DOMContentLoaded", () => {
    const line = document.querySelector(".top nav");
    const current = line?.querySelector("[aria-current]");
    if (current && line.scrollWidth > line.clientWidth) line.scrollLeft = current.offsetLeft - line.offsetLeft - 40;
  });

  window.nightmill = { copy, say, csrf: () => document.body.dataset.csrf };
})();
