// An agent that turns words round: java -cp 'lib/*' Agent.java
// Its queues are there already: coditect topology apply --capability words.reverse
import com.google.gson.*;
import com.rabbitmq.client.*;
import java.nio.charset.StandardCharsets;
import java.util.*;

class Agent {
    static final String CAPABILITY = "words.reverse", NAME = "reverser-" + ProcessHandle.current().pid();
    static final int SLOTS = 8, ATTEMPTS = 2, DELAY_MS = 100;
    static final Gson JSON = new Gson();

    record Failure(String reason, String type, String message, String traceback, boolean retryable) { }

    static Object handle(String body) {
        var words = JsonParser.parseString(body).getAsJsonObject().getAsJsonPrimitive("words");
        if (words == null || !words.isString()) throw new IllegalArgumentException("words are to be text");
        return Map.of("reversed", new StringBuilder(words.getAsString()).reverse().toString());
    }

    static long number(Map<String, Object> headers, String key, long usual) {
        return headers.containsKey(key) ? Long.parseLong(headers.get(key).toString()) : usual;
    }

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
        if (to == null) return;
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
        long attempt = number(headers, "x-coditect-attempt", 1), now = System.currentTimeMillis();
        long most = Math.min(ATTEMPTS, number(headers, "x-coditect-max-attempts", ATTEMPTS));
        long tag = delivery.getEnvelope().getDeliveryTag();
        if (headers.containsKey("x-coditect-workflow") && task.getReplyTo() == null) {
            channel.basicReject(tag, false);
            return;
        }
        if (number(headers, "x-coditect-deadline", now) < now) {
            giveUp(delivery, headers, "rejected", attempt, new Failure("expired", "TaskExpired", "The deadline has passed", "", false));
        } else {
            Object value = null;
            Failure why = null;
            try {
                value = handle(new String(delivery.getBody(), StandardCharsets.UTF_8));
            } catch (RuntimeException error) {
                why = new Failure("handler_error", error.getClass().getSimpleName(), String.valueOf(error.getMessage()), "", true);
            }
            if (why == null) reply(task, "completed", attempt, value);
            else fail(delivery, headers, attempt, most, why);
        }
        channel.basicAck(tag, false);
    }

    void fail(Delivery delivery, Map<String, Object> headers, long attempt, long most, Failure why) throws Exception {
        var errors = JsonParser.parseString(headers.getOrDefault("x-coditect-errors", "[]").toString()).getAsJsonArray();
        errors.add(JSON.toJsonTree(Map.of("agent", NAME, "attempt", attempt, "reason", why.reason(), "type", why.type(),
            "message", why.message(), "at_ms", System.currentTimeMillis())));
        headers.put("x-coditect-errors", errors.toString());
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
        for (String level : List.of("p0", "p1", "p2")) {
            var channel = connection.createChannel();
            channel.confirmSelect();
            channel.basicQos(SLOTS);
            var agent = new Agent(channel);
            channel.basicConsume("tasks." + CAPABILITY + "." + level, false, (tag, delivery) -> {
                try {
                    agent.take(delivery);
                } catch (Exception error) { // unsettled, the task comes again, to another process or to this one again
                    error.printStackTrace();
                    System.exit(1);
                }
            }, tag -> { });
        }
        System.out.println("ready");
    }
}
