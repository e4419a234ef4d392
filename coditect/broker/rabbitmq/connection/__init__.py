"""A connection to RabbitMQ that reconnects: its byte stream, its channels, and the recovery after a loss."""
