// What poll.mjs and stream.mjs share: how the service is asked.
import { randomUUID } from "node:crypto";

const { ZIMAGE_PUBLIC_URL: server = "http://127.0.0.1:8080", ZIMAGE_KEY: key } = process.env;

// An error in the service's words; programs decide by its code.
export class Problem extends Error {
  constructor({ status, code, detail, request_id }) {
    super(`${detail} (${code}, ${request_id})`);
    this.code = code;
    this.passing = status >= 500 || status === 429; // may be gone when it is tried again
  }
}

export async function call(path, { headers, ...options } = {}) {
  const response = await fetch(new URL(path, server), {
    ...options,
    headers: { Authorization: `Bearer ${key}`, ...headers },
  });
  if (!response.ok) throw new Problem(await response.json());
  return response;
}

// Submits a prompt. The key of the request: sent again after a lost answer, it
// makes no second picture.
export async function submit(prompt) {
  const response = await call("/v1/generations", {
    method: "POST",
    headers: { "Content-Type": "application/json", "Idempotency-Key": randomUUID() },
    body: JSON.stringify({ prompt }),
  });
  return response.json();
}

export const final = (generation) => ["succeeded", "failed", "canceled"].includes(generation.status);

// The first picture of a generation that succeeded.
export async function picture(generation) {
  if (generation.status !== "succeeded") {
    throw new Error(generation.error?.message ?? `it is ${generation.status}`);
  }
  const response = await call(generation.images[0].url);
  return Buffer.from(await response.arrayBuffer());
}
