// Gives the fleet a task and prints what came of it: java -cp 'lib/*' Client.java CAPABILITY JSON
import com.rabbitmq.client.*;
import java.util.concurrent.*;
class Client {
    public static void main(String[] words) throws Exception {
        var factory = new ConnectionFactory();
        factory.setUri(System.getenv("CODITECT_AMQP_URL"));
        try (var connection = factory.newConnection(); var channel = connection.createChannel()) {
            channel.confirmSelect();
            String id = java.util.UUID.randomUUID().toString(), answers = channel.queueDeclare().getQueue();
            var mine = new CompletableFuture<Delivery>();
            channel.basicConsume(answers, true, (tag, one) -> { if (id.equals(one.getProperties().getCorrelationId())) mine.complete(one); }, tag -> { });
            var task = new AMQP.BasicProperties.Builder().deliveryMode(2).messageId(id).correlationId(id).replyTo(answers).build();
            channel.basicPublish("coditect.tasks", words[0], task, words[1].getBytes("UTF-8"));
            channel.waitForConfirmsOrDie(10_000);
            var answer = mine.get(10, TimeUnit.SECONDS);
            System.out.println(answer.getProperties().getHeaders().get("x-coditect-status") + " " + new String(answer.getBody(), "UTF-8"));
        }
    }
}
