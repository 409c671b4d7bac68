// Submits a prompt, follows it by its event stream, and saves the picture:
//
//   ZIMAGE_KEY=zi_… node stream.mjs "a lighthouse in a storm at night" out.png
import { writeFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { Readable } from "node:stream";
import { setTimeout as pause } from "node:timers/promises";
import { call, final, picture, Problem, submit } from "./call.mjs";

// Whole generations, and between them how far it is. A stream that breaks is
// opened again where it ended. EventSource would do that by itself, but cannot
// send a key.
async function* follow(id) {
  const headers = { Accept: "text/event-stream" };
  for (let broken = 0; broken < 10; broken++) {
    try {
      const response = await call(`/v1/generations/${id}/events`, { headers });
      if (response.status === 204) return; // final, and seen
      for await (const line of createInterface({ input: Readable.fromWeb(response.body) })) {
        if (line.startsWith("id: ")) headers["Last-Event-ID"] = line.slice(4);
        if (line.startsWith("data: ")) {
          const event = JSON.parse(line.slice(6));
          if (event.code) throw new Problem(event);
          broken = 0;
          yield event;
          if (final(event)) return;
        }
      }
    } catch (error) {
      if (error instanceof Problem && !error.passing) throw error;
    }
    await pause(2000);
  }
  throw new Error("its events cannot be followed, ask for it later");
}

const [prompt, file] = process.argv.slice(2);
let generation = await submit(prompt);
for await (const event of follow(generation.id)) {
  console.log(event.status, `${Math.round(event.progress.fraction * 100)} %`);
  generation = { ...generation, ...event };
}
await writeFile(file, await picture(generation));
console.log(`${file}  seed ${generation.seed}`);
