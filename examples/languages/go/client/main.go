// Gives the fleet a task and prints what came of it: go run ./client CAPABILITY JSON
package main

import ("context"; "crypto/rand"; "fmt"; "os"; amqp "github.com/rabbitmq/amqp091-go")

func must[T any](value T, err error) T { if err != nil { panic(err) }; return value }

func main() {
	connection := must(amqp.Dial(os.Getenv("CODITECT_AMQP_URL")))
	defer connection.Close()
	channel := must(connection.Channel())
	queue := must(channel.QueueDeclare("", false, false, true, false, nil)).Name
	answers, id := must(channel.Consume(queue, "", true, true, false, false, nil)), rand.Text()
	task := amqp.Publishing{DeliveryMode: amqp.Persistent, MessageId: id, CorrelationId: id, ReplyTo: queue, Body: []byte(os.Args[2])}
	if err := channel.PublishWithContext(context.Background(), "coditect.tasks", os.Args[1], false, false, task); err != nil { panic(err) }
	for answer := range answers {
		if answer.CorrelationId == id { fmt.Println(answer.Headers["x-coditect-status"], string(answer.Body)); return }
	}
}
