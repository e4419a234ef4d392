// Gives the fleet a task and prints what came of it: go run ./client CAPABILITY JSON
package main
import ("crypto/rand"; "fmt"; "os"; "time"; amqp "github.com/rabbitmq/amqp091-go")

func must[T any](value T, err error) T { if err != nil { panic(err) }; return value }

func main() {
	time.AfterFunc(10*time.Second, func() { panic("no answer within ten seconds") })
	connection := must(amqp.Dial(os.Getenv("CODITECT_AMQP_URL")))
	defer connection.Close()
	channel := must(connection.Channel())
	must(0, channel.Confirm(false))
	queue, id := must(channel.QueueDeclare("", false, false, true, false, nil)).Name, rand.Text()
	answers := must(channel.Consume(queue, "", true, true, false, false, nil))
	task := amqp.Publishing{DeliveryMode: amqp.Persistent, MessageId: id, CorrelationId: id, ReplyTo: queue, Body: []byte(os.Args[2])}
	if !must(channel.PublishWithDeferredConfirm("coditect.tasks", os.Args[1], false, false, task)).Wait() { panic("the broker refused the task") }
	for answer := range answers {
		if answer.CorrelationId == id { fmt.Println(answer.Headers["x-coditect-status"], string(answer.Body)); return }
	}
}
