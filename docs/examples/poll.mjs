// Submits a prompt, asks until it is final, and saves the picture:
//
//   ZIMAGE_KEY=zi_… node poll.mjs "a lighthouse in a storm at night" out.png
import { randomUUID } from "node:crypto";
import { writeFile } from "node:fs/promises";

const { ZIMAGE_PUBLIC_URL: server = "http://127.0.0.1:8080", ZIMAGE_KEY: key } = process.env;
const [prompt, file] = process.argv.slice(2);

async function call(path, { headers, ...options } = {}) {
  const response = await fetch(new URL(path, server), {
    ...options,
    headers: { Authorization: `Bearer ${key}`, ...headers },
  });
  if (!response.ok) {
    const { detail, code, request_id } = await response.json();
    throw new Error(`${detail} (${code}, ${request_id})`);
  }
  return response;
}

// The key of the request: sent again after a lost answer, it makes no second picture.
const accepted = await call("/v1/generations", {
  method: "POST",
  headers: { "Content-Type": "application/json", "Idempotency-Key": randomUUID() },
  body: JSON.stringify({ prompt }),
});
let generation = await accepted.json();

// Each question waits up to half a minute at the service.
while (generation.status === "queued" || generation.status === "running") {
  const response = await call(`/v1/generations/${generation.id}`, { headers: { Prefer: "wait=30" } });
  generation = await response.json();
}
if (generation.status !== "succeeded") {
  throw new Error(generation.error?.message ?? `it is ${generation.status}`);
}

const picture = await call(generation.images[0].url);
await writeFile(file, Buffer.from(await picture.arrayBuffer()));
console.log(`${file}  seed ${generation.seed}`);
