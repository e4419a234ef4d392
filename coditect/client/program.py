"""The composition root of every program that is a client: chooses RabbitMQ as its broker and Redis as its registry."""

from __future__ import annotations

from coditect.broker.rabbitmq import AmqpBroker
from coditect.registry.redis import RedisRegistry
from coditect.settings.settings import Settings

CONNECT_SECONDS = 10.0
"""How long a client waits for a broker that does not answer yet."""


def adapters(
    settings: Settings, *, name: str = "coditect client", connect_seconds: float = CONNECT_SECONDS
) -> tuple[AmqpBroker, RedisRegistry]:
    """Return the broker and the registry that the settings name, not opened yet."""
    broker = AmqpBroker(
        settings.amqp_url,
        name=name,
        declare=settings.declare,
        quorum=settings.reply_queue == "quorum",
        connect_seconds=connect_seconds,
    )
    return broker, RedisRegistry(settings.redis_url)
