"""The composition root of the command line, which makes a broker, a registry and a client from the settings."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, suppress
from uuid import uuid4

from coditect.broker.management import Management, QueueRates
from coditect.broker.rabbitmq import AmqpBroker
from coditect.broker.topology import Binding
from coditect.broker.topology_diff import PlannedBroker
from coditect.cli.terminal.failure import AMQP, REDIS, say_guesses
from coditect.client.client import Client
from coditect.errors import Overloaded, PublishUnconfirmed, SetupError, Unroutable
from coditect.model.message import Message
from coditect.registry.document import HTTP_PREFIX
from coditect.registry.port import Registry
from coditect.registry.redis import RedisRegistry
from coditect.settings.addresses import vhost_of
from coditect.settings.settings import Settings

TAKEN_SECONDS = 5.0
"""How long the broker may take to return a message for no queue."""


async def sign_in(url: str) -> None:
    """Connect to the broker at a URL with its user and password, publish messages for no queue, and disconnect.

    Raises:
        BrokerUnavailable: when the broker does not answer.
        SetupError: when the broker refuses the sign-in, or takes no messages; the error says what to do.
    """
    async with AmqpBroker(url, name="coditect doctor", declare=False) as broker:
        try:
            for _ in range(2):  # an alarm blocks a connection behind its first message
                with suppress(Unroutable):
                    await broker.publish(
                        Message(b""), exchange="", routing_key=str(uuid4()), timeout_seconds=TAKEN_SECONDS
                    )
        except (PublishUnconfirmed, Overloaded) as error:
            fix = "`rabbitmq-diagnostics alarms` names what is short: free memory, or space on the broker's disk"
            raise SetupError("The broker takes no messages, as while it has an alarm", fix=fix) from error


class RealConnections:
    """The broker, registry and client of a command, made for the servers that the settings name."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._said: set[str] = set()
        # What libraries say of themselves is for whoever debugs; a command tells errors by itself.
        logging.basicConfig(level=settings.log_level if os.environ.get("CODITECT_DEBUG") else logging.CRITICAL)

    @property
    def environ(self) -> Mapping[str, str]:
        """The environment variables of the process."""
        return os.environ

    def broker(self) -> AbstractAsyncContextManager[PlannedBroker]:
        """Return RabbitMQ's adapter, not opened yet, which may declare exchanges and queues."""
        self._say_guesses(AMQP)
        quorum = self._settings.reply_queue == "quorum"
        return AmqpBroker(self._settings.amqp_url, name="coditect cli", quorum=quorum)

    async def bindings(self) -> frozenset[Binding] | None:
        """Return the broker's bindings from its management API; None when the settings name no such API."""
        if self._settings.management_url is None:
            return None
        return await Management(self._settings.management_url).bindings(vhost_of(self._settings.amqp_url))

    async def queue_rates(self) -> Mapping[str, QueueRates] | None:
        """Return the message rates of queues, keyed by queue name; None when the settings name no management API."""
        if self._settings.management_url is None:
            return None
        return await Management(self._settings.management_url).queue_rates(vhost_of(self._settings.amqp_url))

    def registry(self) -> AbstractAsyncContextManager[Registry]:
        """Return the registry in Redis, not opened yet."""
        self._say_guesses(REDIS)
        return RedisRegistry(self._settings.redis_url)

    def http_agents(self) -> AbstractAsyncContextManager[Registry]:
        """Return the registry of HTTP agents in Redis, not opened yet."""
        return RedisRegistry(self._settings.redis_url, prefix=HTTP_PREFIX)

    def fleet(self) -> AbstractAsyncContextManager[Client]:
        """Return a new public client, not opened yet, with settings from the environment."""
        self._say_guesses(AMQP, REDIS)
        return Client.from_env()

    def _say_guesses(self, *variables: str) -> None:
        """Print once, for each unset variable with a server's address, that localhost is tried instead."""
        say_guesses(*(variable for variable in variables if variable not in self._said))
        self._said.update(variables)
