"""The reader of an agent's mailbox, its queue of control messages: cancel, ping, drain, broadcast and others.

Each message is acted on at most once, and never holds up a task. A drain counts only when it is addressed to one agent:
a drain that is sent to all agents is ignored.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any, Final

from coditect.agent.declaration import Agent
from coditect.agent.process import say_drained
from coditect.agent.runtime import Runtime
from coditect.aio.supervisor import Supervisor
from coditect.aio.threads import Carried, carry_await, in_thread
from coditect.broker.port import Broker, Consumer, Delivery
from coditect.errors import CoditectError, InvalidTask
from coditect.messaging.control_plane import ControlPlane
from coditect.messaging.event_publisher import Events
from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.model.limits import BreakerState
from coditect.model.message import Message
from coditect.model.result import error_name, original_error
from coditect.model.task import Task
from coditect.telemetry.logs import LogLevels
from coditect.telemetry.metrics import Metrics
from coditect.wire import control_messages, routing, tasks
from coditect.wire.control import Verb
from coditect.wire.json import dumps, loads
from coditect.wire.workflow_tasks import HandoffOffer

log = logging.getLogger(__name__)

MAILBOX_PREFETCH = 100
MAILBOX_ANSWER_SECONDS = 2.0
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
        drain: asyncio.Event,
        metrics: Metrics,
    ) -> None:
        self._runtime = runtime
        self._metrics = metrics
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
        self._consumer = await self._broker.consume(queue, self._arrived, prefetch=MAILBOX_PREFETCH, group="mailbox")

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
            case tasks.CREDIT:
                self._runtime.services.credit(tasks.read_credit(content))
            case control_messages.PING:
                self._background.start(self._pong(message, content), name="pong")
            case control_messages.BREAKER_NEWS:
                self._runtime.guards.breakers.heard(BreakerState.read(content))
            case control_messages.HANDOFF:
                self._background.start(self._handoffs.answer(HandoffOffer.read(content)), name="handoff")
            case control_messages.DRAIN if not to_all:
                say_drained()
                self._drain.set()
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
            answer = listener(content)
            if inspect.isawaitable(answer):
                answer = await answer
        except (SystemExit, KeyboardInterrupt) as error:  # in an asyncio task they would end the event loop
            raise RuntimeError("A listener tried to end its agent") from error
        if answer is not None and message.reply_to:
            await self._reply(message, answer, control_messages.HEARD)

    async def _pong(self, message: Message, content: Any) -> None:
        load = self._runtime.load()
        report: dict[str, object] = {
            "agent_id": self._runtime.agent_id,
            "status": load.status.value,
            "running": load.running,
        }
        content = content if isinstance(content, dict) else {}
        if isinstance(content.get("task_id"), str):
            report["task"] = self._task(content["task_id"])
        if isinstance(content.get("metrics"), list):
            report["metrics"] = self._metrics.totals(map(str, content["metrics"]))
        if content.get("tasks") is True:
            report["tasks"] = [_running(task) for task in islice(self._runtime.tasks(), control_messages.MOST_TASKS)]
        await self._reply(message, report, control_messages.PONG)

    async def _reply(self, message: Message, content: Any, kind: str) -> None:
        """Answer a control message at its `reply_to`, if agents may write to such an address; only log a failure."""
        address = self._runtime.addresses.find(message.reply_to)
        if address is None:
            return
        try:
            await self._broker.publish(
                Message(body=dumps(content), correlation_id=message.correlation_id, type=kind),
                exchange=address.exchange,
                routing_key=address.routing_key,
                timeout_seconds=MAILBOX_ANSWER_SECONDS,
            )
        except CoditectError as error:
            log.debug("A control message could not be answered", extra={"reason": str(error)})

    def _task(self, task_id: str) -> dict[str, str] | None:
        task = self._runtime.task(task_id)
        if task is None:
            return None
        facts = {"capability": task.capability, "priority": task.priority.value}
        key = self._runtime.guards.keys.awaited(task_id)
        return facts if key is None else facts | {"key": key}


def _running(task: Task) -> dict[str, object]:
    return {
        "task_id": task.id,
        "capability": task.capability,
        "priority": task.priority.value,
        "attempt": task.attempt,
        "workflow": None if task.owner is None else task.owner.workflow,
        "published_at_ms": task.published_at_ms,
    }


# The answers of an agent when others offer it a running task: as its `on_handoff` function says, or by default.
#
# By default an agent accepts a task that it could begin at once: it offers the capability, has a free slot, waits for
# no breaker or rate of the capability, and the input fits. An agent never accepts a capability that it does not offer.

DECIDE_SECONDS = 8.0
"""How long an `on_handoff` function may take: after ten seconds the next agent is asked."""
HANDOFF_ANSWER_SECONDS = 30.0
ANSWERED_LATER: Final = object()
"""What an `on_handoff` function returns whose agent answers the offer by a request of its own, as HTTP agents may."""


class OfferedHandoffs:
    """The answers of one agent process to the handoffs that are offered to it."""

    def __init__(self, agent: Agent, runtime: Runtime) -> None:
        self._runtime = runtime
        self._decide = agent.handoff_policy
        self._capabilities = {capability.name: capability for capability in agent.capabilities}

    async def answer(self, offer: HandoffOffer) -> None:
        """Decide about an offered task, and tell the control plane; a decision that gets lost counts as no answer."""
        why = await self._refusal(offer)
        if why is None:
            return
        verb = Verb.HANDOFF_DECLINE if why else Verb.HANDOFF_ACCEPT
        body = {"handoff": offer.handoff, "agent": self._runtime.agent_id, "reason": why}
        control: ControlPlane = self._runtime.services.control
        try:
            handoff = await control.ask(verb, body, timeout=HANDOFF_ANSWER_SECONDS)
        except CoditectError as error:
            log.info("The answer to a handoff was not taken", extra={"handoff": offer.handoff, "reason": str(error)})
        else:
            log.debug("A handoff was answered", extra={"handoff": offer.handoff, "state": handoff.get("state")})

    async def _refusal(self, offer: HandoffOffer) -> str | None:
        """Return why the agent declines the task; empty when it accepts, None when it answers by itself, later."""
        if offer.capability not in self._capabilities:
            return f"it does not offer {offer.capability}"
        if self._decide is not None:
            try:
                async with asyncio.timeout(DECIDE_SECONDS):
                    decided = await carry_await(_called(self._decide, offer))
            except TimeoutError as error:
                decided = Carried.failed(error)
            if decided.error is not None:
                log.warning("An on_handoff function failed", exc_info=decided.error, extra={"handoff": offer.handoff})
                return f"its on_handoff function failed: {error_name(original_error(decided.error))}"
            if decided.value is ANSWERED_LATER:
                return None
            if decided.value is not None:
                return _outcome(decided.value)
        return await self._by_default(offer)

    async def _by_default(self, offer: HandoffOffer) -> str:
        runtime, capability = self._runtime, self._capabilities[offer.capability]
        guards = runtime.guards
        if offer.capability in guards.breakers.waiting or not await guards.rates.has_token(offer.capability):
            return f"its tasks of {offer.capability} wait for a breaker or a rate"
        if not runtime.services.intake.is_free(routing.task_queue(offer.capability, Priority.P1)):
            return "it has no free slot, or other tasks wait for one"
        if offer.whole:
            try:
                capability.signature.input.decode(dumps(offer.input))
            except InvalidTask as error:
                return f"the input does not fit: {error}"[:500]
        return ""


async def _called(decide: Callable[..., Any], offer: HandoffOffer) -> Any:
    """Call an `on_handoff` function and return its decision; a plain function, which may block, runs in a thread."""
    if inspect.iscoroutinefunction(decide):
        return await decide(offer)
    decided = await in_thread(partial(decide, offer))
    return await decided if inspect.isawaitable(decided) else decided


def _outcome(decided: Any) -> str:
    """Return why an `on_handoff` function declines, from its result (True, False or a reason); empty if it accepts."""
    if decided is True:
        return ""
    return decided if isinstance(decided, str) and decided else "its on_handoff function declined"
