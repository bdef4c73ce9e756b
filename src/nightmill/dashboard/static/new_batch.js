// New batch: dropping a file, the upload with its progress beside the check of the lines, and the check of a
// stored file by the server. Without this script the form uploads and a link checks.
"use strict";

(() => {
  const zone = document.getElementById("drop");
  if (!zone) return; // a key that may only read
  const input = document.getElementById("file");
  const found = document.getElementById("found");
  const byId = (id) => document.getElementById(id);
  const number = (value) => value.toLocaleString("en-US");
  const reportOf = (fileId) => "nightmill.check." + fileId;
  let current = null;
  let report = null;

  // --- small helpers --------------------------------------------------------------------------------------
  function element(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function size(bytes) {
    const units = ["B", "KiB", "MiB", "GiB"];
    let value = bytes;
    let unit = 0;
    while (value >= 1024 && unit < units.length - 1) {
      value /= 1024;
      unit += 1;
    }
    return (unit ? value.toFixed(1) : value) + " " + units[unit];
  }

  function refuse(message) {
    byId("drop-problem").replaceChildren(element("p", "problem", message));
  }

  // --- the file -------------------------------------------------------------------------------------------
  function take(files) {
    byId("drop-problem").replaceChildren();
    if (!files.length) return;
    if (files.length > 1) return refuse("One file makes one batch: drop one file at a time.");
    const file = files[0];
    if (!file.size) return refuse(`${file.name} is empty, or a folder.`);
    const most = Number(zone.dataset.mostBytes);
    if (file.size > most) {
      return refuse(`${file.name} has ${size(file.size)}; a batch takes up to ${size(most)}. Split the file into several batches.`);
    }
    start(file);
  }

  function start(file) {
    if (current) current.stop();
    report = null;
    byId("sending").hidden = false;
    zone.hidden = true;
    byId("sending-name").textContent = file.name;
    byId("sending-bar").value = 0;
    byId("checking-bar").value = 0;
    byId("sending-text").textContent = `0 of ${size(file.size)}`;
    byId("checking-text").textContent = "";
    found.replaceChildren();
    byId("stop").textContent = "Stop";
    byId("sending").scrollIntoView({ block: "nearest" });
    const worker = check(file);
    const request = send(file);
    current = {
      stop: () => {
        worker.terminate();
        request.abort();
        current = null;
      },
    };
  }

  function stop() {
    if (current) current.stop();
    byId("sending").hidden = true;
    zone.hidden = false;
    input.value = "";
  }

  // The upload failed, or was given up: what was found stays, and another file can be dropped.
  function rest(message) {
    if (current) current.stop();
    byId("sending-text").textContent = message;
    byId("stop").textContent = "Close";
    zone.hidden = false;
    input.value = "";
  }

  function send(file) {
    const request = new XMLHttpRequest();
    const form = new FormData();
    form.append("purpose", "batch");
    form.append("file", file);
    request.open("POST", new URL("ui/new/upload", document.baseURI));
    request.setRequestHeader("Accept", "application/json");
    request.setRequestHeader("X-CSRF-Token", window.nightmill.csrf());
    request.upload.addEventListener("progress", (event) => {
      byId("sending-bar").value = event.total ? event.loaded / event.total : 0;
      byId("sending-text").textContent = event.loaded < event.total ? `${size(event.loaded)} of ${size(event.total)}` : "being stored";
    });
    request.addEventListener("load", () => {
      let answer = {};
      try {
        answer = JSON.parse(request.responseText);
      } catch {
        // The message below says what is known.
      }
      if (request.status === 200 && answer.file_id) {
        keep(answer.file_id);
        location.assign(new URL("ui/new?file=" + encodeURIComponent(answer.file_id), document.baseURI));
        return;
      }
      const message = answer.problem || (answer.error && answer.error.message);
      rest("not stored");
      refuse(message || `The server did not take the file (status ${request.status}).`);
    });
    request.addEventListener("error", () => {
      rest("broken off");
      refuse("The connection to the server broke off. Drop the file again.");
    });
    request.send(form);
    return request;
  }

  // What was found is shown on the page of the file until the server has checked it; without the lines' texts.
  function keep(fileId) {
    if (!report) return;
    const groups = report.groups.map(({ message, hint, lines, count }) => ({ message, hint, lines, count }));
    try {
      sessionStorage.setItem(reportOf(fileId), JSON.stringify({ ...report, groups }));
    } catch {
      // The browser keeps nothing for this page; the server's check says the same a little later.
    }
  }

  function recall(fileId) {
    try {
      return JSON.parse(sessionStorage.getItem(reportOf(fileId)));
    } catch {
      return null;
    }
  }

  // --- the check while the file is uploaded ---------------------------------------------------------------
  function check(file) {
    const worker = new Worker(new URL(zone.dataset.check, document.baseURI));
    worker.addEventListener("message", ({ data }) => {
      if (data.type === "unreadable") return;
      report = data;
      byId("checking-bar").value = data.type === "progress" ? data.bytes / file.size : 1;
      const lines = data.valid + data.invalid;
      byId("checking-text").textContent = `${number(lines)} read, ${number(data.invalid)} invalid`;
      found.replaceChildren(...parts(data));
      if (data.type === "hopeless") {
        rest("stopped");
        refuse(lines ? "The file was not uploaded: none of its lines is a request." : "The file was not uploaded: it has no line.");
      }
    });
    worker.postMessage(file);
    return worker;
  }

  function parts(data) {
    const made = [];
    if (data.endpoint || data.models.length) {
      const names = data.models.map(([name, lines]) => `${name || "no model"} (${number(lines)})`).join(", ");
      made.push(element("p", "quiet wrap", `${data.endpoint || ""} · ${names}`));
    }
    if (data.groups.length) {
      const list = element("ul", "wrap");
      for (const group of data.groups) {
        const more = group.count - group.lines.length;
        const item = element("li");
        const numbers = `Line ${group.lines.map(number).join(", ")}${more > 0 ? ` and ${number(more)} more` : ""}: `;
        item.append(element("strong", "", numbers), group.message, " ", element("span", "quiet", group.hint));
        if (group.text) item.append(element("br"), element("code", "", group.text));
        list.append(item);
      }
      made.push(list);
    }
    return made;
  }

  // --- the check of a stored file -------------------------------------------------------------------------
  async function checkStored(section) {
    const select = byId("endpoint");
    const url = new URL(section.dataset.check, document.baseURI);
    if (section.dataset.changed) url.searchParams.set("endpoint", select.value);
    section.setAttribute("aria-busy", "true");
    const wanted = (section.dataset.asked = String(Number(section.dataset.asked || 0) + 1));
    const waiting = section.querySelector("[data-waiting]");
    if (waiting) {
      waiting.textContent = "The lines are being checked.";
      const earlier = recall(byId("chosen").dataset.file);
      if (earlier && earlier.invalid) {
        const lines = number(earlier.valid + earlier.invalid);
        waiting.after(element("p", "", `So far: ${number(earlier.invalid)} of ${lines} lines are invalid.`), ...parts(earlier));
      }
    }
    let answer;
    try {
      const response = await fetch(url, { headers: { Accept: "text/html" } });
      answer = new DOMParser().parseFromString(await response.text(), "text/html");
    } catch {
      answer = null;
    }
    if (section.dataset.asked !== wanted) return; // the endpoint was changed again
    section.removeAttribute("aria-busy");
    const verdict = answer && answer.getElementById("check-answer");
    if (!verdict) {
      section.replaceChildren(element("p", "warning", "The lines could not be checked now. They are checked when the batch is created."));
      return;
    }
    section.replaceChildren(...verdict.childNodes);
    byId("create").replaceChildren(...answer.getElementById("create-answer").childNodes);
  }

  // --- events ---------------------------------------------------------------------------------------------
  byId("upload-button").hidden = true;
  byId("stop").addEventListener("click", stop);
  input.addEventListener("change", () => take(input.files));
  zone.addEventListener("submit", (event) => {
    event.preventDefault();
    take(input.files);
  });
  for (const name of ["dragenter", "dragover"]) {
    document.addEventListener(name, (event) => {
      if (![...event.dataTransfer.types].includes("Files")) return;
      event.preventDefault();
      zone.classList.add("over");
    });
  }
  document.addEventListener("dragleave", (event) => event.relatedTarget || zone.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    zone.classList.remove("over");
    take(event.dataTransfer.files);
  });

  const section = byId("check");
  if (section) {
    if (section.dataset.done === undefined) checkStored(section);
    byId("endpoint").addEventListener("change", () => {
      section.dataset.changed = "1";
      checkStored(section);
    });
    // The button that was pressed is part of the form; a second press must not send it again.
    byId("create-form").addEventListener("submit", () => setTimeout(() => byId("create").querySelectorAll("button").forEach((button) => (button.disabled = true))));
    window.addEventListener("pageshow", () => byId("create").querySelectorAll("button").forEach((button) => (button.disabled = false)));
  }
})();
