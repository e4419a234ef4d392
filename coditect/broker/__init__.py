"""The connection to RabbitMQ: the interface `Broker`, the topology, the AMQP adapter and its in-memory twin."""
