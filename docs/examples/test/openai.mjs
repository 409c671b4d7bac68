// What OpenAI's library does with the service, unchanged: a test, no example.
// TestOpenAIsLibrary in internal/clients runs it.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import OpenAI from "openai";

const { ZIMAGE_PUBLIC_URL: server, ZIMAGE_KEY: apiKey } = process.env;
const baseURL = `${server}/v1`;
const client = new OpenAI({ apiKey, baseURL });
const size = "256x256";
const sum = (bytes) => createHash("sha256").update(bytes).digest("hex");

// The generations that there are, with the hashes of their images, newest first.
async function generations() {
  const response = await fetch(`${baseURL}/generations?limit=100`, { headers: { Authorization: `Bearer ${apiKey}` } });
  assert.equal(response.status, 200);
  return (await response.json()).data;
}

const models = [];
for await (const model of client.models.list()) models.push(model);
assert.equal(models[0].object, "model");
assert.equal(typeof models[0].id, "string");
assert.equal(typeof models[0].created, "number");
assert.equal(typeof models[0].owned_by, "string");

// One of them, by its name.
assert.deepEqual(await client.models.retrieve(models[0].id), models[0]);
for (const name of ["dall-e-3", "somebody/else"]) {
  const error = await client.models.retrieve(name).then(() => assert.fail("it is there"), (error) => error);
  assert.ok(error instanceof OpenAI.NotFoundError, `${error}`);
  assert.equal(error.code, "not_found");
  assert.equal(error.type, "invalid_request_error");
}

// In base64, two at once.
const two = await client.images.generate({ prompt: "a lighthouse", n: 2, size, quality: "low", model: models[0].id, user: "someone" });
const [made] = await generations();
assert.deepEqual(two.data.map((image) => sum(Buffer.from(image.b64_json, "base64"))), made.images.map((image) => image.sha256));
assert.equal(two.data.length, 2);
assert.equal(two.size, size);
assert.equal(two.quality, "low");
assert.equal(two.output_format, "png");
assert.equal(two.background, "opaque");
assert.equal(two.usage.total_tokens, 0);
assert.match(two._request_id, /^req_/);
assert.ok(!JSON.stringify(made).includes("someone"));

// By a link, which needs no key.
const linked = await client.images.generate({ prompt: "a harbour", size, response_format: "url", output_format: "jpeg", output_compression: 50 });
assert.equal(linked.data[0].b64_json, undefined);
const file = await fetch(linked.data[0].url);
assert.equal(file.status, 200);
assert.equal(file.headers.get("content-type"), "image/jpeg");
assert.equal(sum(Buffer.from(await file.arrayBuffer())), (await generations())[0].images[0].sha256);

// As WebP.
const webp = await client.images.generate({ prompt: "a heron", size, output_format: "webp", output_compression: 50 });
const bytes = Buffer.from(webp.data[0].b64_json, "base64");
assert.equal(webp.output_format, "webp");
assert.equal(bytes.subarray(0, 4) + bytes.subarray(8, 16), "RIFFWEBPVP8X");
assert.equal(`${bytes.readUIntLE(24, 3) + 1}x${bytes.readUIntLE(27, 3) + 1}`, size);
assert.equal(sum(bytes), (await generations())[0].images[0].sha256);

// As a stream.
const events = [];
for await (const event of await client.images.generate({ prompt: "a gull", size, n: 2, stream: true, partial_images: 2 })) events.push(event);
const completed = events.filter((event) => event.type === "image_generation.completed");
assert.deepEqual(completed.map((event) => sum(Buffer.from(event.b64_json, "base64"))), (await generations())[0].images.map((image) => image.sha256));
assert.equal(completed.length, 2);
assert.equal(completed[0].size, size);
assert.equal(typeof completed[0].created_at, "number");
assert.equal(events.filter((event) => event.type === "image_generation.partial_image").length, 0);

// An answer that is lost: the library repeats the request and gets the same picture.
let sent = 0;
const lossy = new OpenAI({
  apiKey, baseURL,
  fetch: async (url, init) => {
    const response = await fetch(url, init);
    if (sent++ > 0) return response;
    await response.arrayBuffer();
    throw new TypeError("the answer is lost");
  },
});
const before = (await generations()).length;
const once = await lossy.images.generate({ prompt: "a storm", size });
const after = await generations();
assert.equal(sent, 2);
assert.equal(after.length, before + 1);
assert.equal(sum(Buffer.from(once.data[0].b64_json, "base64")), after[0].images[0].sha256);
// A request that nobody repeats makes another one.
const another = await client.images.generate({ prompt: "a storm", size });
assert.notEqual(another.data[0].b64_json, once.data[0].b64_json);
assert.equal((await generations()).length, before + 2);

// A client that goes away while it waits, and comes back.
let gone = 0;
const hasty = new OpenAI({ apiKey, baseURL, timeout: 60000, fetch: (url, init) => {
  if (gone++ > 0) return fetch(url, init);
  const leave = AbortSignal.timeout(50);
  return fetch(url, { ...init, signal: leave });
} });
await hasty.images.generate({ prompt: "a tide", size: "1024x1024", quality: "hd" }).then((answer) => assert.equal(answer.data.length, 1));
assert.ok((await generations()).filter((g) => g.prompt === "a tide").length === 1);

// Errors are the library's own, by status.
async function refused(kind, what, change = {}) {
  const error = await new OpenAI({ apiKey, baseURL, ...change }).images.generate({ prompt: "p", size, ...what }).then(
    () => assert.fail("it was not refused"),
    (error) => error,
  );
  assert.ok(error instanceof kind, `${error}`);
  assert.ok(error instanceof OpenAI.APIError);
  assert.match(error.requestID, /^req_/);
  return error;
}
const wrong = await refused(OpenAI.BadRequestError, { n: 11 });
assert.equal(wrong.status, 400);
assert.equal(wrong.code, "invalid_request");
assert.equal(wrong.type, "invalid_request_error");
assert.equal(wrong.param, "n");
assert.equal((await refused(OpenAI.BadRequestError, { output_format: "gif" })).param, "output_format");
assert.equal((await refused(OpenAI.BadRequestError, { stream: true, prompt: " " })).param, "prompt");
assert.equal((await refused(OpenAI.AuthenticationError, {}, { apiKey: "zi_nobody" })).code, "unauthorized");
const unknown = await refused(OpenAI.NotFoundError, { model: "dall-e-3" });
assert.equal(unknown.param, "model");
assert.match(unknown.message, /GET \/v1\/models/);

const impatient = new OpenAI({ apiKey, baseURL, maxRetries: 0 });
let limited;
for (let batch = 0; batch < 40 && !limited; batch++) {
  const answers = await Promise.allSettled(Array.from({ length: 50 }, () => impatient.models.list()));
  limited = answers.find((answer) => answer.status === "rejected")?.reason;
}
assert.ok(limited instanceof OpenAI.RateLimitError, `${limited}`);
assert.equal(limited.type, "rate_limit_error");
assert.equal(limited.headers.get("x-ratelimit-limit-requests"), "600");
console.log("all is well");
