// Submits a prompt, asks until it is final, and saves the picture:
//
//   ZIMAGE_KEY=zi_… node poll.mjs "a lighthouse in a storm at night" out.png
import { writeFile } from "node:fs/promises";
import { call, final, picture, submit } from "./call.mjs";

const [prompt, file] = process.argv.slice(2);
let generation = await submit(prompt);
while (!final(generation)) {
  // Each question waits up to half a minute at the service.
  const response = await call(`/v1/generations/${generation.id}`, { headers: { Prefer: "wait=30" } });
  generation = await response.json();
}
await writeFile(file, await picture(generation));
console.log(`${file}  seed ${generation.seed}`);
