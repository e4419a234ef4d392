"""The demo: a private fleet does real work over this repository while an agent and RabbitMQ are killed."""
