// An agent that turns words round: node agent.js
// Its queues are there already: coditect topology apply --capability words.reverse
import amqp from "amqplib";

const CAPABILITY = "words.reverse", NAME = `reverser-${process.pid}`, SLOTS = 8, ATTEMPTS = 2, DELAY_MS = 100;
const connection = await amqp.connect(process.env.CODITECT_AMQP_URL);
const channel = await connection.createConfirmChannel();
await channel.prefetch(SLOTS);

function handle(input) {
  if (typeof input.words !== "string") throw new TypeError("words are to be text");
  return { reversed: [...input.words].reverse().join("") };
}

function reply(task, status, attempt, value) {
  if (!task.replyTo) return;
  const exchange = task.replyTo.startsWith("reply.") ? "coditect.replies" : "";
  channel.publish(exchange, task.replyTo, Buffer.from(JSON.stringify(value)), {
    persistent: true, type: "coditect.result.v1", appId: NAME, correlationId: task.correlationId ?? task.messageId,
    headers: { "x-coditect-status": status, "x-coditect-attempt": attempt, "x-coditect-capability": CAPABILITY,
      "x-coditect-agent": NAME, ...(task.messageId && { "x-coditect-task": task.messageId }) },
  });
}

function giveUp(message, headers, status, attempt, failure) {
  channel.publish("coditect.dead", message.fields.routingKey, message.content, { ...message.properties, headers: {
    ...headers, "x-coditect-reason": failure.reason, "x-coditect-agent": NAME, "x-coditect-attempt": attempt,
    "x-coditect-error": JSON.stringify(failure), "x-coditect-dead-at": Date.now() } });
  reply(message.properties, status, attempt, failure);
}

async function take(message) {
  const { properties: task, fields } = message, headers = task.headers ?? {};
  const attempt = Number(headers["x-coditect-attempt"] ?? 1);
  const most = Math.min(ATTEMPTS, Number(headers["x-coditect-max-attempts"] ?? ATTEMPTS));
  if (headers["x-coditect-workflow"] && !task.replyTo) return channel.nack(message, false, false);
  const failure = { reason: "expired", type: "TaskExpired", message: "The deadline has passed", traceback: "", retryable: false };
  if (Number(headers["x-coditect-deadline"] ?? Infinity) < Date.now()) giveUp(message, headers, "rejected", attempt, failure);
  else try {
    reply(task, "completed", attempt, handle(JSON.parse(message.content)));
  } catch (error) {
    Object.assign(failure, { reason: "handler_error", type: error.name, message: error.message, retryable: true });
    const { reason, type, message: said } = failure, earlier = JSON.parse(headers["x-coditect-errors"] ?? "[]");
    const errors = JSON.stringify([...earlier, { agent: NAME, attempt, reason, type, message: said, at_ms: Date.now() }]);
    const kept = { ...headers, "x-coditect-errors": errors };
    if (attempt >= most) giveUp(message, kept, "failed", attempt, failure);
    else channel.publish(`coditect.retry.after.${DELAY_MS}`, fields.routingKey, message.content,
      { ...task, expiration: undefined, headers: { ...kept, "x-coditect-attempt": attempt + 1 } });
  }
  await channel.waitForConfirms(); // only what the broker has may be acknowledged
  channel.ack(message);
}

for (const level of ["p0", "p1", "p2"]) await channel.consume(`tasks.${CAPABILITY}.${level}`, take);
process.on("SIGTERM", () => connection.close());
console.log("ready");
