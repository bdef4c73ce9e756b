// A worker that reads a file of request lines while it is uploaded, and says which lines are wrong. The server
// decides once it has the file; the rules and the words here are those of the server for the usual mistakes.
"use strict";

const GROUPS = 20;
const NUMBERS = 5;
const MOST_IDS = 2000000;
const REPORT_MS = 150;
const GIVE_UP_LINES = 20;
const SHOWN = 160;
const MODEL_NEEDED = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"];
const HINTS = {
  json: "Write each request with a JSON library, on one line: json.dumps(request) in Python.",
  python: "This looks like a Python dict that was written with str(): write it with json.dumps().",
  pretty: "This looks like a part of an object over several lines: write each request on one line.",
  utf8: "Save the file as UTF-8.",
  id: "Give each line a custom_id of its own, for example its row number.",
  missing: "A line needs 'custom_id', 'method', 'url' and 'body'.",
};

const decoder = new TextDecoder("utf-8", { fatal: true });
const kindOf = (value) =>
  value === null ? "null"
  : Array.isArray(value) ? "an array"
  : typeof value === "object" ? "an object"
  : typeof value !== "number" ? "a " + typeof value
  : Number.isInteger(value) ? "an integer"
  : "a decimal";

class WrongLine extends Error {
  constructor(message, hint = "") {
    super(message);
    this.hint = hint;
  }
}

class Check {
  constructor() {
    this.number = 0;
    this.valid = 0;
    this.invalid = 0;
    this.bytes = 0;
    this.endpoint = null;
    this.models = new Map();
    this.ids = new Set();
    this.groups = new Map();
  }

  // One physical line, as bytes.
  take(bytes) {
    this.number += 1;
    let text;
    try {
      text = decoder.decode(bytes);
    } catch {
      this.refuse(new WrongLine("This line is not valid UTF-8.", HINTS.utf8), "");
      return;
    }
    if (this.number === 1) text = text.replace(/^\ufeff/, "");
    if (!text.trim()) return;
    try {
      this.check(text);
      this.valid += 1;
    } catch (error) {
      if (!(error instanceof WrongLine)) throw error;
      this.refuse(error, text);
    }
  }

  check(text) {
    let line;
    try {
      line = JSON.parse(text);
    } catch {
      const start = text.trim();
      const hint = start.startsWith("{'") ? HINTS.python : start === "{" || !/^[{[]/.test(start) ? HINTS.pretty : HINTS.json;
      throw new WrongLine("This line is not parseable as valid JSON.", hint);
    }
    if (kindOf(line) !== "an object") {
      throw new WrongLine(`Invalid type for this line: expected an object, but got ${kindOf(line)} instead.`);
    }
    this.need(line, "custom_id", "string");
    if (this.need(line, "method", "string") !== "POST") throw new WrongLine("Value of 'method' must be 'POST'.");
    const url = this.need(line, "url", "string");
    if (this.endpoint === null) this.endpoint = url;
    if (url !== this.endpoint) throw new WrongLine(`The url is not ${this.endpoint}, as in the first line.`);
    const body = this.need(line, "body", "object");
    if (body.stream === true) throw new WrongLine("Streaming is not supported in the Batch API.", "Remove 'stream' from the body.");
    const model = body.model ?? "";
    if (model === "" && MODEL_NEEDED.includes(url)) throw new WrongLine("Model parameter is required.");
    if (typeof model !== "string") throw new WrongLine(`Invalid type for 'body.model': expected a string, but got ${kindOf(model)} instead.`);
    if (url === "/v1/chat/completions" && body.messages == null) throw new WrongLine("Messages parameter is required.");
    if (url === "/v1/embeddings" && body.input == null) throw new WrongLine("Input parameter is required.");
    if (this.ids.has(line.custom_id)) throw new WrongLine("The custom_id is a duplicate of another request.", HINTS.id);
    if (this.ids.size < MOST_IDS) this.ids.add(line.custom_id);
    if (this.models.size < GROUPS || this.models.has(model)) this.models.set(model, (this.models.get(model) || 0) + 1);
  }

  need(line, name, type) {
    const value = line[name];
    if (value === undefined) throw new WrongLine(`Missing required parameter: '${name}'.`, HINTS.missing);
    const wanted = type === "object" ? "an object" : "a string";
    if (kindOf(value) !== wanted) throw new WrongLine(`Invalid type for '${name}': expected ${wanted}, but got ${kindOf(value)} instead.`);
    return value;
  }

  refuse(error, text) {
    this.invalid += 1;
    const key = error.message + error.hint;
    let group = this.groups.get(key);
    if (!group) {
      if (this.groups.size === GROUPS) return;
      group = { message: error.message, hint: error.hint, lines: [], count: 0, text: text.slice(0, SHOWN) };
      this.groups.set(key, group);
    }
    group.count += 1;
    if (group.lines.length < NUMBERS) group.lines.push(this.number);
  }

  get isHopeless() {
    return this.valid === 0 && this.invalid >= GIVE_UP_LINES;
  }

  report(type) {
    postMessage({
      type,
      bytes: this.bytes,
      valid: this.valid,
      invalid: this.invalid,
      endpoint: this.endpoint,
      models: [...this.models],
      groups: [...this.groups.values()],
    });
  }
}

async function read(file) {
  const check = new Check();
  const reader = file.stream().getReader();
  let rest = new Uint8Array(0);
  let reportedAt = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    check.bytes += value.length;
    let from = 0;
    for (let end = value.indexOf(10); end >= 0; end = value.indexOf(10, from)) {
      const part = value.subarray(from, end);
      check.take(rest.length ? joined(rest, part) : part);
      rest = new Uint8Array(0);
      from = end + 1;
    }
    rest = joined(rest, value.subarray(from));
    if (check.isHopeless) break;
    if (performance.now() - reportedAt > REPORT_MS) {
      check.report("progress");
      reportedAt = performance.now();
    }
  }
  if (rest.length && !check.isHopeless) check.take(rest);
  check.report(check.valid ? "done" : "hopeless");
}

function joined(first, second) {
  const all = new Uint8Array(first.length + second.length);
  all.set(first);
  all.set(second, first.length);
  return all;
}

onmessage = (event) => {
  read(event.data).catch((error) => postMessage({ type: "unreadable", message: String(error && error.message) }));
};
