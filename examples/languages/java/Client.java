// Gives the fleet a task and prints what came of it: java -cp 'lib/*' Client.java CAPABILITY JSON
import com.rabbitmq.client.*;
import java.util.UUID;

class Client {
    public static void main(String[] words) throws Exception {
        var factory = new ConnectionFactory();
        factory.setUri(System.getenv("CODITECT_AMQP_URL"));
        var connection = factory.newConnection();
        var channel = connection.createChannel();
        String id = UUID.randomUUID().toString(), answers = channel.queueDeclare().getQueue();
        channel.basicConsume(answers, true, (tag, answer) -> {
            if (!id.equals(answer.getProperties().getCorrelationId())) return; // an answer to somebody else
            System.out.println(answer.getProperties().getHeaders().get("x-coditect-status") + " " + new String(answer.getBody(), "UTF-8"));
            System.exit(0);
        }, tag -> { });
        var task = new AMQP.BasicProperties.Builder().deliveryMode(2).messageId(id).correlationId(id).replyTo(answers).build();
        channel.basicPublish("coditect.tasks", words[0], task, words[1].getBytes("UTF-8"));
    }
}
