// Receives webhooks, verifies them, and prints what happened:
//
//   WEBHOOK_SECRET=whsec_… node webhook.mjs 9000
import { createServer } from "node:http";
import { Webhook } from "standardwebhooks";

const webhook = new Webhook(process.env.WEBHOOK_SECRET);
const [port] = process.argv.slice(2);
const seen = new Set(); // in your database, in earnest

async function receive(request) {
  let body = "";
  for await (const chunk of request.setEncoding("utf8")) {
    body += chunk;
    if (body.length > 1 << 20) throw new Error("too large");
  }
  let event;
  try {
    event = webhook.verify(body, request.headers); // the bytes as they came, before anything reads them
  } catch {
    return 401;
  }
  // At least once: the same delivery may come again, under the same id.
  const id = request.headers["webhook-id"];
  if (!seen.has(id)) {
    seen.add(id);
    console.log(event.type, event.data.id);
  }
  return 204; // at once; what takes long comes after the answer
}

const server = createServer((request, response) => {
  receive(request).then(
    (status) => response.writeHead(status).end(),
    () => response.destroy(), // the request broke off, or is none of ours
  );
});
server.listen(port, "127.0.0.1", () => console.log(`listening on http://127.0.0.1:${server.address().port}`));
