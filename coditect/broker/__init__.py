"""The connection to RabbitMQ: the port, the topology, the AMQP adapter and its in-memory twin."""
