// An agent that turns words round: java -cp 'lib/*' Agent.java
// Its queues are there already: coditect topology apply --capability words.reverse
import com.google.gson.*;
import com.rabbitmq.client.*;
import java.nio.charset.StandardCharsets;
import java.util.*;
import java.util.concurrent.Semaphore;

class Agent {
    static final String CAPABILITY = "words.reverse", NAME = "reverser-" + ProcessHandle.current().pid();
    static final int SLOTS = 8, ATTEMPTS = 2, DELAY_MS = 100;
    /** Queues that a stranger may have a result written to. The names of the system's own queues begin otherwise. */
    static final List<String> ANSWERABLE = List.of("reply.", "answers", "amq.gen-", "amq.rabbitmq.reply-to.");
    static final List<String> LEVELS = List.of("p0", "p1", "p2");
    static final Gson JSON = new Gson();

    record Failure(String reason, String type, String message, String traceback, boolean retryable) { }

    static Object handle(String body) {
        if (!(JsonParser.parseString(body) instanceof JsonObject input)
            || !(input.get("words") instanceof JsonPrimitive words) || !words.isString())
            throw new IllegalArgumentException("words are to be text");
        return Map.of("reversed", new StringBuilder(words.getAsString()).reverse().toString());
    }

    /** A header that cannot be read counts as missing: no message may stop an agent. */
    static long number(Map<String, Object> headers, String key, long usual) {
        try {
            return Long.parseLong(String.valueOf(headers.get(key)));
        } catch (NumberFormatException none) {
            return usual;
        }
    }

    /** The history of the attempts with one more; what cannot be read of it, or is nested too deep to write, is lost. */
    static String history(Map<String, Object> headers, Map<String, Object> one) {
        var latest = JSON.toJsonTree(one);
        try {
            var errors = JsonParser.parseString(String.valueOf(headers.get("x-coditect-errors"))).getAsJsonArray();
            errors.add(latest);
            return errors.toString();
        } catch (RuntimeException | StackOverflowError none) {
            return "[" + latest + "]";
        }
    }

    static boolean answerable(String replyTo) {
        return replyTo != null && ANSWERABLE.stream().anyMatch(replyTo::startsWith);
    }

    /** Why a task is not begun; null when it is. */
    static Failure refusal(String replyTo, Map<String, Object> headers, long now) {
        if (Math.min(number(headers, "x-coditect-deadline", now), number(headers, "x-coditect-start-by", now)) < now)
            return new Failure("expired", "TaskExpired", "The deadline has passed", "", false);
        if (headers.containsKey("x-coditect-claim"))
            return new Failure("too_large", "TooLarge", "This agent has no folder of large values", "", false);
        if (replyTo != null && !answerable(replyTo))
            return new Failure("invalid_task", "InvalidTask", "This reply_to is not written to", "", false);
        return null;
    }

    /** A permit for the task that runs on each level's channel: while one has them all, nothing runs. */
    static final Semaphore RUNNING = new Semaphore(LEVELS.size(), true);

    final Channel channel;

    Agent(Channel channel) {
        this.channel = channel;
    }

    /** Waits until the broker has the message: only then may the task be acknowledged. */
    void publish(String exchange, String key, AMQP.BasicProperties properties, byte[] body) throws Exception {
        channel.basicPublish(exchange, key, properties.builder().deliveryMode(2).build(), body);
        channel.waitForConfirmsOrDie(30_000);
    }

    void reply(AMQP.BasicProperties task, String status, long attempt, Object value) throws Exception {
        String to = task.getReplyTo(), id = task.getMessageId();
        if (!answerable(to)) return;
        var headers = new HashMap<String, Object>(Map.of("x-coditect-status", status, "x-coditect-attempt", attempt,
            "x-coditect-capability", CAPABILITY, "x-coditect-agent", NAME));
        if (id != null) headers.put("x-coditect-task", id);
        var result = new AMQP.BasicProperties.Builder().type("coditect.result.v1").appId(NAME).headers(headers)
            .correlationId(task.getCorrelationId() != null ? task.getCorrelationId() : id).build();
        publish(to.startsWith("reply.") ? "coditect.replies" : "", to, result, JSON.toJson(value).getBytes(StandardCharsets.UTF_8));
    }

    void giveUp(Delivery delivery, Map<String, Object> headers, String status, long attempt, Failure why) throws Exception {
        headers.putAll(Map.of("x-coditect-reason", why.reason(), "x-coditect-agent", NAME, "x-coditect-attempt", attempt,
            "x-coditect-error", JSON.toJson(why), "x-coditect-dead-at", System.currentTimeMillis()));
        var task = delivery.getProperties().builder().expiration(null).headers(headers).build();
        publish("coditect.dead", delivery.getEnvelope().getRoutingKey(), task, delivery.getBody());
        reply(delivery.getProperties(), status, attempt, why);
    }

    void take(Delivery delivery) throws Exception {
        var task = delivery.getProperties();
        var headers = new HashMap<String, Object>(task.getHeaders() != null ? task.getHeaders() : Map.of());
        long attempt = Math.max(1, number(headers, "x-coditect-attempt", 1));
        long most = Math.min(ATTEMPTS, number(headers, "x-coditect-max-attempts", ATTEMPTS));
        long tag = delivery.getEnvelope().getDeliveryTag();
        if (headers.containsKey("x-coditect-workflow") && task.getReplyTo() == null) {
            channel.basicReject(tag, false);
            return;
        }
        var refused = refusal(task.getReplyTo(), headers, System.currentTimeMillis());
        if (refused != null) {
            giveUp(delivery, headers, "rejected", attempt, refused);
        } else {
            Object value = null;
            Failure why = null;
            try {
                value = handle(new String(delivery.getBody(), StandardCharsets.UTF_8));
            } catch (RuntimeException | StackOverflowError error) {
                var said = "%.1000s".formatted(error.getMessage()); // it goes into a header, which is to fit into a frame
                why = new Failure("handler_error", error.getClass().getSimpleName(), said, "", true);
            }
            if (why == null) reply(task, "completed", attempt, value);
            else fail(delivery, headers, attempt, most, why);
        }
        channel.basicAck(tag, false);
    }

    void fail(Delivery delivery, Map<String, Object> headers, long attempt, long most, Failure why) throws Exception {
        headers.put("x-coditect-errors", history(headers, Map.of("agent", NAME, "attempt", attempt, "reason", why.reason(),
            "type", why.type(), "message", why.message(), "at_ms", System.currentTimeMillis())));
        if (attempt >= most) {
            giveUp(delivery, headers, "failed", attempt, why);
            return;
        }
        headers.put("x-coditect-attempt", attempt + 1);
        var again = delivery.getProperties().builder().expiration(null).headers(headers).build();
        publish("coditect.retry.after." + DELAY_MS, delivery.getEnvelope().getRoutingKey(), again, delivery.getBody());
    }

    public static void main(String[] words) throws Exception {
        var factory = new ConnectionFactory();
        factory.setUri(System.getenv("CODITECT_AMQP_URL"));
        var connection = factory.newConnection();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            RUNNING.acquireUninterruptibly(LEVELS.size()); // what runs is finished, and nothing begins
            connection.abort(10_000);
        }));
        for (String level : LEVELS) {
            var channel = connection.createChannel();
            channel.confirmSelect();
            channel.basicQos(SLOTS);
            var agent = new Agent(channel);
            channel.basicConsume("tasks." + CAPABILITY + "." + level, false, (tag, delivery) -> {
                RUNNING.acquireUninterruptibly();
                try {
                    agent.take(delivery);
                    RUNNING.release();
                } catch (Throwable error) { // unsettled, the task comes again, to another process or to this one again
                    error.printStackTrace();
                    RUNNING.release();
                    System.exit(1);
                }
            }, tag -> System.exit(1)); // the queue is gone
        }
        System.out.println("ready");
    }
}
