"""The message broker: the interface, its RabbitMQ and in-memory adapters, and the topology of exchanges and queues."""
