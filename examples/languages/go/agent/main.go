// An agent that turns words round: go run ./agent
// Its queues are there already: coditect topology apply --capability words.reverse
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const (
	capability = "words.reverse"
	slots      = 8
	attempts   = 2
	delayMs    = 100
)

var name = fmt.Sprintf("reverser-%d", os.Getpid())

// answerable are queues that a stranger may have a result written to. The system's own queues begin otherwise.
var answerable = []string{"reply.", "answers", "amq.gen-", "amq.rabbitmq.reply-to."}

type failure struct {
	Reason    string `json:"reason"`
	Type      string `json:"type"`
	Message   string `json:"message"`
	Traceback string `json:"traceback"`
	Retryable bool   `json:"retryable"`
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func handle(body []byte) (any, error) {
	var input struct{ Words *string }
	if err := json.Unmarshal(body, &input); err != nil || input.Words == nil {
		return nil, errors.New("words are to be text")
	}
	letters := []rune(*input.Words)
	slices.Reverse(letters)
	return map[string]string{"reversed": string(letters)}, nil
}

// number reads a header; one that cannot be read counts as missing, since no message may stop an agent.
func number(headers amqp.Table, key string, usual int64) int64 {
	if value, err := strconv.ParseInt(fmt.Sprint(headers[key]), 10, 64); err == nil {
		return value
	}
	return usual
}

// publish waits until the broker has the message: only then may the task be acknowledged.
func publish(channel *amqp.Channel, exchange, key string, message amqp.Publishing) {
	message.DeliveryMode = amqp.Persistent
	confirmed := must(channel.PublishWithDeferredConfirm(exchange, key, false, false, message))
	limit, done := context.WithTimeout(context.Background(), 30*time.Second)
	defer done()
	if !must(confirmed.WaitContext(limit)) {
		panic("the broker refused a message")
	}
}

func isAnswerable(replyTo string) bool {
	return slices.ContainsFunc(answerable, func(start string) bool { return strings.HasPrefix(replyTo, start) })
}

// refusal says why a task is not begun; without a reason it is.
func refusal(task amqp.Delivery, now int64) failure {
	until := min(number(task.Headers, "x-coditect-deadline", now), number(task.Headers, "x-coditect-start-by", now))
	switch {
	case until < now:
		return failure{"expired", "TaskExpired", "The deadline has passed", "", false}
	case task.Headers["x-coditect-claim"] != nil:
		return failure{"too_large", "TooLarge", "This agent has no folder of large values", "", false}
	case task.ReplyTo != "" && !isAnswerable(task.ReplyTo):
		return failure{"invalid_task", "InvalidTask", "This reply_to is not written to", "", false}
	}
	return failure{}
}

func reply(channel *amqp.Channel, task amqp.Delivery, status string, attempt int64, value any) {
	if !isAnswerable(task.ReplyTo) {
		return
	}
	exchange, correlation := "", task.CorrelationId
	if strings.HasPrefix(task.ReplyTo, "reply.") {
		exchange = "coditect.replies"
	}
	if correlation == "" {
		correlation = task.MessageId
	}
	publish(channel, exchange, task.ReplyTo, amqp.Publishing{
		Type: "coditect.result.v1", AppId: name, CorrelationId: correlation, Body: must(json.Marshal(value)),
		Headers: amqp.Table{"x-coditect-status": status, "x-coditect-attempt": attempt, "x-coditect-agent": name,
			"x-coditect-capability": capability, "x-coditect-task": task.MessageId},
	})
}

// again is the task as it came, with other headers and without an expiration.
func again(task amqp.Delivery, headers amqp.Table) amqp.Publishing {
	return amqp.Publishing{Headers: headers, MessageId: task.MessageId, CorrelationId: task.CorrelationId,
		ReplyTo: task.ReplyTo, Type: task.Type, AppId: task.AppId, ContentType: task.ContentType, Body: task.Body}
}

func giveUp(channel *amqp.Channel, task amqp.Delivery, headers amqp.Table, status string, attempt int64, why failure) {
	headers["x-coditect-reason"], headers["x-coditect-agent"], headers["x-coditect-attempt"] = why.Reason, name, attempt
	headers["x-coditect-error"], headers["x-coditect-dead-at"] = string(must(json.Marshal(why))), time.Now().UnixMilli()
	publish(channel, "coditect.dead", task.RoutingKey, again(task, headers))
	reply(channel, task, status, attempt, why)
}

func take(channel *amqp.Channel, task amqp.Delivery) {
	headers, now := maps.Clone(task.Headers), time.Now().UnixMilli()
	if headers == nil {
		headers = amqp.Table{}
	}
	attempt := max(1, number(headers, "x-coditect-attempt", 1))
	if headers["x-coditect-workflow"] != nil && task.ReplyTo == "" {
		task.Reject(false)
		return
	}
	if refused := refusal(task, now); refused.Reason != "" {
		giveUp(channel, task, headers, "rejected", attempt, refused)
	} else if value, err := handle(task.Body); err == nil {
		reply(channel, task, "completed", attempt, value)
	} else {
		why := failure{"handler_error", "Error", err.Error(), "", true}
		var earlier []any
		json.Unmarshal([]byte(fmt.Sprint(headers["x-coditect-errors"])), &earlier)
		one := map[string]any{"agent": name, "attempt": attempt, "reason": why.Reason, "type": why.Type, "message": why.Message, "at_ms": now}
		headers["x-coditect-errors"] = string(must(json.Marshal(append(earlier, one))))
		if attempt >= min(attempts, number(headers, "x-coditect-max-attempts", attempts)) {
			giveUp(channel, task, headers, "failed", attempt, why)
		} else {
			headers["x-coditect-attempt"] = attempt + 1
			publish(channel, fmt.Sprintf("coditect.retry.after.%d", delayMs), task.RoutingKey, again(task, headers))
		}
	}
	task.Ack(false)
}

func main() {
	connection := must(amqp.Dial(os.Getenv("CODITECT_AMQP_URL")))
	defer connection.Close()
	ended, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	context.AfterFunc(ended, stop) // a second signal ends it at once
	var running sync.WaitGroup // of the tasks, and of the loops that begin them
	replies := must(connection.Channel()) // of its own: the cancel of a consumer may come amid the frames of a message
	must(0, replies.Confirm(false))
	for _, level := range []string{"p0", "p1", "p2"} {
		channel := must(connection.Channel())
		must(0, channel.Qos(slots, 0, false))
		tasks := must(channel.ConsumeWithContext(ended, "tasks."+capability+"."+level, "", false, false, false, false, nil))
		running.Add(1)
		go func() {
			defer running.Done()
			for task := range tasks {
				running.Add(1)
				go func() {
					defer running.Done()
					take(replies, task)
				}()
			}
			if ended.Err() == nil {
				panic("a consumer is canceled, or the connection is lost")
			}
		}()
	}
	fmt.Println("ready")
	running.Wait() // a loop ends when its consumer is canceled
}
