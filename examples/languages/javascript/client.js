// Gives the fleet a task and prints what came of it: node client.js CAPABILITY JSON
import { randomUUID } from "node:crypto";
import amqp from "amqplib";

const [capability, body] = process.argv.slice(2);
const timeout = setTimeout(() => { throw new Error("no answer within ten seconds"); }, 10_000);
const connection = await amqp.connect(process.env.CODITECT_AMQP_URL);
const channel = await connection.createConfirmChannel();
const answers = (await channel.assertQueue("", { exclusive: true })).queue;
const id = randomUUID();
await channel.consume(answers, async (message) => {
  if (message.properties.correlationId !== id) return; // an answer to somebody else
  console.log(message.properties.headers["x-coditect-status"], message.content.toString());
  clearTimeout(timeout);
  await connection.close();
}, { noAck: true });
channel.publish("coditect.tasks", capability, Buffer.from(body), {
  persistent: true, messageId: id, correlationId: id, replyTo: answers,
});
await channel.waitForConfirms();
