// A worker without any library: NATS is lines of text over TCP, so every language can take part in the mesh.
// Run it with: node external_worker.js            (NATS_URL says where the server is)
const net = require("node:net");

const address = new URL(process.env.NATS_URL || "nats://127.0.0.1:4222");
const server = net.connect(Number(address.port || 4222), address.hostname);
const receipts = `_INBOX.${process.pid}_${Date.now()}`;
const sent = [];
let received = Buffer.alloc(0);

function workOn(payload) {
  return { text: String(payload.text ?? "").toUpperCase() };
}

function onMessage(subject, message) {
  if (subject.startsWith(receipts)) {
    console.log("completed", sent[subject.split(".").at(-1)]); // the outcome is on disk
  } else if (message.node_id === "external") {
    const outcome = JSON.stringify({ work_id: message.work_id, result: workOn(message.payload) });
    const receipt = `${receipts}.${sent.push(message.work_id) - 1}`;
    server.write(`PUB compute.work.completed.v1 ${receipt} ${Buffer.byteLength(outcome)}\r\n${outcome}\r\n`);
  }
}

function takeOne() { // one line, and after a line that begins with MSG its body
  const end = received.indexOf("\r\n");
  const words = received.subarray(0, Math.max(end, 0)).toString().split(" ");
  const body = words[0] === "MSG" ? Number(words.at(-1)) + 2 : 0;
  if (end < 0 || received.length < end + 2 + body) return false;
  if (words[0] === "MSG") onMessage(words[1], JSON.parse(received.subarray(end + 2, end + body)));
  if (words[0] === "PING") server.write("PONG\r\n");
  if (words[0] === "PONG") console.log("waiting for work"); // it has read our subscriptions
  if (words[0] === "-ERR") throw new Error(words.join(" "));
  received = received.subarray(end + 2 + body);
  return true;
}

server.on("data", (piece) => { received = Buffer.concat([received, piece]); while (takeOne()); });
server.write(`CONNECT {"verbose":false}\r\nSUB compute.work.assigned.v1 1\r\nSUB ${receipts}.> 2\r\nPING\r\n`);
