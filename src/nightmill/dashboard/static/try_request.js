// Try: sends the form without leaving the page, counts the time while the model answers, and proposes models.
// Without this script the form loads the page again with the answer.
"use strict";

(() => {
  const form = document.getElementById("try-form");
  const button = document.getElementById("send");
  const state = document.getElementById("send-state");
  const answer = document.getElementById("answer");
  const model = document.getElementById("model");
  let asked = null;

  async function propose() {
    let names = [];
    try {
      const response = await fetch(new URL(model.dataset.models, document.baseURI), { headers: { Accept: "application/json" } });
      names = (await response.json()).models || [];
    } catch {
      return; // the field takes any name
    }
    document.getElementById("models").replaceChildren(...names.map((name) => Object.assign(document.createElement("option"), { value: name })));
    if (names.length && model.dataset.fill !== undefined && !model.value) model.value = names[0];
  }

  function problem(text) {
    const line = document.createElement("p");
    line.className = "problem";
    line.setAttribute("role", "alert");
    line.textContent = text;
    answer.replaceChildren(line);
  }

  async function send() {
    asked = new AbortController();
    const startedAt = performance.now();
    const clock = setInterval(() => {
      state.textContent = `${((performance.now() - startedAt) / 1000).toFixed(1)} s`;
    }, 100);
    button.textContent = "Stop";
    answer.setAttribute("aria-busy", "true");
    try {
      const response = await fetch(form.action, {
        method: "POST",
        body: new URLSearchParams(new FormData(form)),
        headers: { Accept: "text/html", "X-CSRF-Token": window.nightmill.csrf(), "X-Fragment": "answer" },
        signal: asked.signal,
      });
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      const whole = page.querySelector("main .problem"); // an error page of the server
      if (whole) problem(whole.textContent);
      else answer.replaceChildren(...page.body.childNodes);
    } catch (error) {
      problem(error.name === "AbortError" ? "Stopped. The model may go on answering." : "The server can't be reached.");
    } finally {
      clearInterval(clock);
      asked = null;
      button.textContent = "Send";
      state.textContent = "";
      answer.removeAttribute("aria-busy");
    }
  }

  propose();
  if (!button) return; // a key that may only read
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (asked) asked.abort();
    else send();
  });
  document.getElementById("request").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || asked) return;
    event.preventDefault();
    send();
  });
})();
