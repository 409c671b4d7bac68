// Makes a picture by OpenAI's own library, and saves it:
//
//   ZIMAGE_KEY=zi_… node openai.mjs "a lighthouse in a storm at night" out.png
import { writeFile } from "node:fs/promises";
import OpenAI from "openai";

const { ZIMAGE_PUBLIC_URL: server = "http://127.0.0.1:8080", ZIMAGE_KEY: apiKey } = process.env;
const [prompt, file] = process.argv.slice(2);

const client = new OpenAI({ apiKey, baseURL: `${server}/v1` });
const answer = await client.images.generate({ prompt, size: "1024x1024" });
await writeFile(file, Buffer.from(answer.data[0].b64_json, "base64"));
console.log(`${file}  ${answer.size}`);
