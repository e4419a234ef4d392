// An agent that turns words round: node agent.js
// Its queues are there already: coditect topology apply --capability words.reverse
import amqp from "amqplib";

const CAPABILITY = "words.reverse", NAME = `reverser-${process.pid}`, SLOTS = 8, ATTEMPTS = 2, DELAY_MS = 100;
// Queues that a stranger may have a result written to. The names of the system's own queues begin otherwise.
const ANSWERABLE = ["reply.", "answers", "amq.gen-", "amq.rabbitmq.reply-to."];
const connection = await amqp.connect(process.env.CODITECT_AMQP_URL);
const channel = await connection.createConfirmChannel();
await channel.prefetch(SLOTS);

function handle(input) {
  if (typeof input.words !== "string") throw new TypeError("words are to be text");
  return { reversed: [...input.words].reverse().join("") };
}

// A header that cannot be read counts as missing: no message may stop an agent.
function number(headers, key, usual) {
  const value = Number(headers[key] ?? NaN);
  return Number.isFinite(value) ? value : usual;
}

// The history of the attempts with one more; what cannot be read of it, or is nested too deep to write, is lost.
function history(headers, one) {
  try {
    const errors = JSON.parse(headers["x-coditect-errors"]);
    return JSON.stringify(Array.isArray(errors) ? [...errors, one] : [one]);
  } catch {
    return JSON.stringify([one]);
  }
}

const answerable = (task) => ANSWERABLE.some((start) => task.replyTo?.startsWith(start));

// Why a task is not begun: reason, type and message; null when it is.
function refusal(task, headers) {
  const until = Math.min(number(headers, "x-coditect-deadline", Infinity), number(headers, "x-coditect-start-by", Infinity));
  if (until < Date.now()) return ["expired", "TaskExpired", "The deadline has passed"];
  if (headers["x-coditect-claim"]) return ["too_large", "TooLarge", "This agent has no folder of large values"];
  if (task.replyTo && !answerable(task)) return ["invalid_task", "InvalidTask", "This reply_to is not written to"];
  return null;
}

function reply(task, status, attempt, value) {
  if (!answerable(task)) return;
  const exchange = task.replyTo.startsWith("reply.") ? "coditect.replies" : "";
  channel.publish(exchange, task.replyTo, Buffer.from(JSON.stringify(value)), {
    persistent: true, type: "coditect.result.v1", appId: NAME, correlationId: task.correlationId ?? task.messageId,
    headers: { "x-coditect-status": status, "x-coditect-attempt": attempt, "x-coditect-capability": CAPABILITY,
      "x-coditect-agent": NAME, ...(task.messageId && { "x-coditect-task": task.messageId }) },
  });
}

function giveUp({ fields, properties, content }, headers, status, attempt, failure) {
  channel.publish("coditect.dead", fields.routingKey, content, { ...properties, expiration: undefined, headers: {
    ...headers, "x-coditect-reason": failure.reason, "x-coditect-agent": NAME, "x-coditect-attempt": attempt,
    "x-coditect-error": JSON.stringify(failure), "x-coditect-dead-at": Date.now() } });
  reply(properties, status, attempt, failure);
}

async function take(message) {
  const { properties: task, fields } = message, headers = task.headers ?? {};
  const attempt = Math.max(1, number(headers, "x-coditect-attempt", 1));
  const most = Math.min(ATTEMPTS, number(headers, "x-coditect-max-attempts", ATTEMPTS));
  if (headers["x-coditect-workflow"] && !task.replyTo) return channel.nack(message, false, false);
  const refused = refusal(task, headers);
  if (refused) {
    const [reason, type, said] = refused;
    giveUp(message, headers, "rejected", attempt, { reason, type, message: said, traceback: "", retryable: false });
  } else try {
    reply(task, "completed", attempt, handle(JSON.parse(message.content)));
  } catch (error) {
    const failure = { reason: "handler_error", type: error.name, message: error.message, traceback: "", retryable: true };
    const { reason, type, message: said } = failure;
    const one = { agent: NAME, attempt, reason, type, message: said, at_ms: Date.now() };
    const kept = { ...headers, "x-coditect-errors": history(headers, one) };
    if (attempt >= most) giveUp(message, kept, "failed", attempt, failure);
    else channel.publish(`coditect.retry.after.${DELAY_MS}`, fields.routingKey, message.content,
      { ...task, expiration: undefined, headers: { ...kept, "x-coditect-attempt": attempt + 1 } });
  }
  await channel.waitForConfirms(); // only what the broker has may be acknowledged
  channel.ack(message);
}

const consumers = [], running = new Set();
function begin(message) {
  const task = take(message).finally(() => running.delete(task));
  running.add(task);
}
for (const level of ["p0", "p1", "p2"]) consumers.push(await channel.consume(`tasks.${CAPABILITY}.${level}`, begin));

let ending = false;
connection.on("close", () => { if (!ending) process.exit(1); }); // a broker that ends in order makes no error of it
async function end() {
  if (ending) return;
  ending = true;
  for (const { consumerTag } of consumers) await channel.cancel(consumerTag);
  await Promise.all(running); // what runs is finished
  await channel.close(); // goes out behind the last ack, which the end of the connection could overtake
  await connection.close();
}
for (const signal of ["SIGTERM", "SIGINT"]) process.once(signal, end);
console.log("ready");
