// Uploads a file with fetch, as a form and as a stream, and prints the id of each file.

import { readFile } from "node:fs/promises";

const content = await readFile(process.argv[2]);
const form = new FormData();
form.append("file", new Blob([content]), "in.jsonl");
form.append("purpose", "batch");

const part = 'Content-Disposition: form-data; name=';
const stream = new ReadableStream({
  start(controller) {
    controller.enqueue(Buffer.from(`--xyz\r\n${part}"purpose"\r\n\r\nbatch\r\n`));
    controller.enqueue(Buffer.from(`--xyz\r\n${part}"file"; filename="in.jsonl"\r\n\r\n`));
    controller.enqueue(content);
    controller.enqueue(Buffer.from("\r\n--xyz--\r\n"));
    controller.close();
  },
});

const authorization = `Bearer ${process.env.KEY}`;
const multipart = { "content-type": "multipart/form-data; boundary=xyz" };
for (const options of [
  { body: form, headers: { authorization } },
  { body: stream, headers: { authorization, ...multipart }, duplex: "half" },
]) {
  const response = await fetch(`${process.env.SERVER}/v1/files`, { method: "POST", ...options });
  if (response.status !== 200) {
    throw new Error(`${response.status} ${await response.text()}`);
  }
  console.log((await response.json()).id);
}
