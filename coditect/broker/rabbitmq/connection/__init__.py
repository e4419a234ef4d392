"""A connection to RabbitMQ that recovers: the byte stream, the channels on it, and what happens after a loss."""
