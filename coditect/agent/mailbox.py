"""The reader of an agent's mailbox, its queue of control messages: cancel, ping, drain, broadcast and others.

Each message is acted on at most once, and never holds up a task. A drain counts only when it is addressed to one agent:
a drain that is sent to all agents is ignored.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from itertools import islice
from typing import Any

from coditect.agent.declaration import Agent
from coditect.agent.handoffs import OfferedHandoffs
from coditect.agent.runtime import Runtime
from coditect.aio.supervisor import Supervisor
from coditect.broker.port import Broker, Consumer, Delivery
from coditect.errors import CoditectError, InvalidTask
from coditect.messaging.event_publisher import Events
from coditect.model.ids import AgentId
from coditect.model.limits.breaker import BreakerState
from coditect.model.message import Message
from coditect.model.task import Task
from coditect.telemetry.log_levels import LogLevels
from coditect.wire import control_messages, parts, routing
from coditect.wire.handoffs import HandoffOffer
from coditect.wire.json import dumps, loads

log = logging.getLogger(__name__)

PREFETCH = 100
ANSWER_SECONDS = 2.0
Listener = Callable[..., Any]


class Mailbox:
    """The consumer of an agent process's control messages; every message is acked, readable or not."""

    def __init__(
        self,
        agent: Agent,
        runtime: Runtime,
        broker: Broker,
        events: Events,
        background: Supervisor,
        *,
        drain: Callable[[], None],
    ) -> None:
        self._runtime = runtime
        self._broker = broker
        self._events = events
        self._background = background
        self._listeners = agent.listeners
        self._handoffs = OfferedHandoffs(agent, runtime)
        self._drain = drain
        self._levels = LogLevels()
        self._names = {agent.name, runtime.agent_id}
        self._consumer: Consumer | None = None

    async def open(self, agent_id: AgentId) -> None:
        """Start to consume the agent's mailbox queue."""
        queue = routing.mailbox_queue(agent_id)
        self._consumer = await self._broker.consume(queue, self._arrived, prefetch=PREFETCH, group="mailbox")

    async def close(self) -> None:
        """Stop consuming the agent's mailbox queue."""
        if self._consumer is not None:
            await self._consumer.cancel()

    def _arrived(self, delivery: Delivery) -> None:
        message = delivery.message
        try:
            content = loads(message.body) if message.body else None
            self._read(message, content, to_all=delivery.exchange == routing.BROADCAST)
        except InvalidTask as error:
            log.warning("A control message was not readable", extra={"reason": str(error)})
        delivery.ack()

    def _read(self, message: Message, content: Any, *, to_all: bool) -> None:
        match message.type:
            case control_messages.CANCEL:
                self._runtime.cancel(control_messages.Cancel.read(content))
            case parts.CREDIT:
                self._runtime.credit(parts.read_credit(content))
            case control_messages.PING:
                self._background.start(self._pong(message, content), name="pong")
            case control_messages.BREAKER:
                self._runtime.guards.breakers.heard(BreakerState.read(content))
            case control_messages.HANDOFF:
                self._background.start(self._handoffs.answer(HandoffOffer.read(content)), name="handoff")
            case control_messages.DRAIN if not to_all:
                self._drain()
            case control_messages.LOG_LEVEL:
                self._levels.carry_out(control_messages.LogLevelOrder.read(content))
            case control_messages.LISTEN:
                self._events.unmute(control_messages.listened(content))
            case control_messages.BROADCAST:
                self._listen(message, content)
            case _:
                facts = {"message_type": str(message.type)[:80]}
                log.warning("A control message of an unknown kind was ignored", extra=facts)

    def _listen(self, message: Message, content: Any) -> None:
        excluded = message.headers.get(control_messages.EXCEPT) or []
        listener = self._listeners.get(str(message.headers.get(control_messages.TOPIC, "")))
        if listener is not None and isinstance(excluded, list) and not self._names.intersection(map(str, excluded)):
            self._background.start(self._heard(message, listener, content), name="broadcast listener")

    async def _heard(self, message: Message, listener: Listener, content: Any) -> None:
        """Call a listener with a broadcast's data; send its result, unless it is None, to a sender that wants one."""
        try:
            told = listener(content)
            if inspect.isawaitable(told):
                told = await told
        except (SystemExit, KeyboardInterrupt) as error:  # in an asyncio task they would end the event loop
            raise RuntimeError("A listener tried to end its agent") from error
        if told is not None and message.reply_to:
            await self._reply(message, told, control_messages.HEARD)

    async def _pong(self, message: Message, content: Any) -> None:
        load = self._runtime.load()
        told: dict[str, object] = {
            "agent_id": self._runtime.agent_id,
            "status": load.status.value,
            "running": load.running,
        }
        if isinstance(content, dict) and isinstance(content.get("task_id"), str):
            told["task"] = self._task(content["task_id"])
        if isinstance(content, dict) and content.get("tasks") is True:
            told["tasks"] = [_running(task) for task in islice(self._runtime.tasks(), control_messages.MOST_TASKS)]
        await self._reply(message, told, control_messages.PONG)

    async def _reply(self, message: Message, told: Any, kind: str) -> None:
        """Answer a control message at its `reply_to`, if agents may write to such an address; only log a failure."""
        address = self._runtime.addresses.find(message.reply_to)
        if address is None:
            return
        try:
            await self._broker.publish(
                Message(body=dumps(told), correlation_id=message.correlation_id, type=kind),
                exchange=address.exchange,
                routing_key=address.routing_key,
                timeout_seconds=ANSWER_SECONDS,
            )
        except CoditectError as error:
            log.debug("A control message could not be answered", extra={"reason": str(error)})

    def _task(self, task_id: str) -> dict[str, str] | None:
        task = self._runtime.task(task_id)
        if task is None:
            return None
        told = {"capability": task.capability, "priority": task.priority.value}
        key = self._runtime.guards.awaited_key(task_id)
        return told if key is None else told | {"key": key}


def _running(task: Task) -> dict[str, object]:
    return {
        "task_id": task.id,
        "capability": task.capability,
        "priority": task.priority.value,
        "attempt": task.attempt,
        "workflow": None if task.owner is None else task.owner.workflow,
        "published_at_ms": task.published_at_ms,
    }
