"""The direct lane of a client: each task goes straight through the broker to any agent with the capability."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from coditect.aio.clock import Clock
from coditect.aio.supervisor import Backoff, Supervisor
from coditect.broker.port import Broker, tell
from coditect.client.handle import Handle, task_error
from coditect.client.options import Options, deadline_at
from coditect.codec import encode_any, value_of
from coditect.errors import (
    CoditectError,
    ControlPlaneRequired,
    NotFound,
    Overloaded,
    ResultTimeout,
    TaskError,
    UnknownCapability,
    Unroutable,
)
from coditect.messaging.event_stream import EventStreams
from coditect.messaging.rpc import AHEAD, WITHDRAW_SECONDS, Requests
from coditect.model.capability import nearest_names
from coditect.model.duration import Duration, seconds
from coditect.model.ids import AgentId, TaskId
from coditect.model.registration import AgentRecord, AgentStatus
from coditect.model.result import NOT_TAKEN, Outcome
from coditect.model.task import NO_LIMITS, Limits, Task
from coditect.registry.catalogue import CapabilityCatalogue
from coditect.registry.port import Registry, Search
from coditect.registry.selector import Pick, Selector
from coditect.wire import control_messages
from coditect.wire.tasks import MAX_BODY_BYTES

log = logging.getLogger(__name__)

LONGEST_DIRECT_TIMEOUT_SECONDS = 25 * 60.0
BURST = 16
FULL_SECONDS = 2.0
"""How long a single submit is repeated while the queue is full; `submit_many` waits longer, for each of its tasks."""
RETRY_AFTER_SECONDS = 2.0
"""The least time after which a refused submitter should come back; at most twice that, drawn at random."""
SUBMIT_BACKOFF = Backoff(0.02, 0.5)
MAX_WINDOW_BYTES = 16 * 1024 * 1024
"""The size of bodies that a batch holds in memory before they are sent; one more body may exceed it."""


@dataclass(slots=True, eq=False)
class _Sending:
    """A task on its way to the broker, with its handle and the awaitable of the broker's confirm."""

    handle: Handle
    task: Task
    confirm: Awaitable[None]
    timeout_seconds: float
    """How long the task may wait for the broker, each time it is sent."""


@dataclass(slots=True, eq=False)
class DirectLane:
    """The direct lane of one client, which publishes tasks straight to the capabilities' queues."""

    _broker: Broker
    _clock: Clock
    _selector: Selector
    _catalogue: CapabilityCatalogue
    _requests: Requests
    _event_stream: EventStreams

    async def submit(self, capability: str, body: bytes, options: Options, *, exclusive: bool = False) -> Handle:
        """Publish one direct task, again for up to 2 s while its queue is full; return its handle after the confirm.

        An `exclusive` task is run by the preferred agent (`pin`) or by none, and fails with `NOT_TAKEN` then.
        """
        claims = None if len(body) <= MAX_BODY_BYTES else await self._put(body)
        pick = None
        if not (options.plain and capability in self._selector.plain):
            inline = body if claims is None else None
            pick = await self._selector.pick(capability, options.strategy, options.wanted, body=inline, pin=options.pin)
        sending = self._begin(capability, body, options, pick, claims, exclusive=exclusive)
        try:
            await sending.confirm
        except BaseException as error:  # noqa: BLE001 - raised again, unless a later try succeeds
            await self._repeat(sending, error, min(FULL_SECONDS, sending.timeout_seconds))
        return sending.handle

    async def submit_many(
        self, capability: str, values: Iterable[Any], options: Options, *, concurrency: int
    ) -> AsyncGenerator[Handle, None]:
        """Publish a direct task for each value; yield the handles in order, each once the broker confirmed its task."""
        picks = self._selector.batch(capability, options.strategy, options.wanted, pin=options.pin, many=concurrency)
        source = iter(values)
        under_way: deque[tuple[_Sending, asyncio.Future[None]]] = deque()
        patience = seconds(options.submit_timeout)
        try:
            while bodies := encoded(source, concurrency):
                for body in bodies:
                    claims = await self._put(body) if len(body) > MAX_BODY_BYTES else None
                    pick = await picks.next(body if claims is None else None)
                    sending = self._begin(capability, body, options, pick, claims)
                    under_way.append((sending, asyncio.ensure_future(sending.confirm)))
                    if len(under_way) >= concurrency:
                        yield await self._first(under_way, patience)
                    elif len(under_way) % BURST == 0:
                        await asyncio.sleep(0)  # what was submitted so far leaves while the rest is prepared
            while under_way:
                yield await self._first(under_way, patience)
        except Exception:  # also of the iterable that the values come from
            while under_way:
                try:
                    handle = await self._first(under_way, 0.0)
                except CoditectError:
                    continue  # the first failure is the one that is told
                yield handle
            raise
        finally:
            for sending, confirm in under_way:
                confirm.cancel()
                sending.handle.forget()

    async def withdraw(self, task_id: TaskId, agent_id: AgentId, *, reason: str) -> None:
        """Ask one agent, at most once, to cancel a task that it was sent."""
        message = control_messages.cancel(task_id, reason=reason)
        try:
            await tell(self._broker, message, agent_id=agent_id, within_seconds=WITHDRAW_SECONDS)
        except CoditectError as error:  # then its deadline ends it
            log.info("A task could not be withdrawn", extra={"task_id": task_id, "reason": str(error)})

    async def _put(self, body: bytes) -> bytes:
        return (await self._requests.blobs.put(body)).document

    async def _first(self, under_way: deque[tuple[_Sending, asyncio.Future[None]]], patience_seconds: float) -> Handle:
        """Await the confirm of the oldest sent task; if its queue is full, send it again for a time; return its handle.

        No further task is sent meanwhile.
        """
        sending, confirm = under_way.popleft()
        try:
            await confirm
        except BaseException as error:  # noqa: BLE001 - raised again, unless a later try succeeds
            await self._repeat(sending, error, patience_seconds)
        return sending.handle

    def _begin(
        self,
        capability: str,
        body: bytes,
        options: Options,
        pick: Pick | None,
        claims: bytes | None,
        *,
        exclusive: bool = False,
    ) -> _Sending:
        """Send a task, with a blob reference for a large input; return its handle and the awaitable of the confirm."""
        requests, now_ms = self._requests, self._clock.now_ms()
        task_id = options.task_id or self._clock.new_id()
        limits = _limits(options, now_ms, exclusive=exclusive) if options.limited or exclusive else NO_LIMITS
        correlation_id = reply = None
        if options.results:
            correlation_id = requests.new_token()
            reply = requests.expect(correlation_id)
        task = Task(
            capability,
            options.priority,
            body if claims is None else claims,
            id=task_id,
            correlation_id=correlation_id,
            reply_to=None if reply is None else requests.reply_to,
            limits=limits,
            published_at_ms=now_ms,
            claims=claims,
            headers=options.headers,
            stream=AHEAD if options.stream else 0,
        )
        parts = requests.expect_parts(task) if options.stream else None
        handle = Handle(task, requests, self._event_stream, self._broker, reply, parts)
        if pick is not None and reply is not None:
            reply.add_done_callback(pick.over)
        try:
            pin = None if pick is None else pick.agent_id
            timeout_seconds = seconds(options.submit_timeout)
            sent = requests.send(task, timeout_seconds=timeout_seconds, pin=pin, wait_when_full=False)
        except BaseException:
            handle.forget()
            raise
        return _Sending(handle, task, sent, timeout_seconds)

    async def _repeat(self, sending: _Sending, error: BaseException, patience_seconds: float) -> None:
        """Send a task again until `patience_seconds` are over if its queue was full; else raise its publish's error.

        Raises:
            Overloaded: when the queue was full all the time; the error says when to submit again.
        """
        handle = sending.handle
        try:
            if not isinstance(error, Overloaded):
                raise error
            await self._send_again(sending, error, patience_seconds)
        except Unroutable as unroutable:
            handle.forget()
            raise await self._catalogue.unknown(
                handle.capability, routing_key=unroutable.facts.get("routing_key")
            ) from unroutable
        except BaseException:
            handle.forget()
            raise

    async def _send_again(self, sending: _Sending, refused: Overloaded, patience_seconds: float) -> None:
        loop, task = asyncio.get_running_loop(), sending.task
        until = loop.time() + patience_seconds
        for longest in SUBMIT_BACKOFF.pauses():
            pause = longest * (1 + self._clock.chance()) / 2
            if loop.time() + pause >= until:
                break
            await asyncio.sleep(pause)
            try:
                await self._requests.send(task, timeout_seconds=sending.timeout_seconds, wait_when_full=False)
            except Overloaded as error:
                refused = error
            else:
                return
        raise Overloaded(
            "The broker takes no more tasks of this capability and priority for now",
            capability=task.capability,
            priority=task.priority.value,
            retry_after=round(RETRY_AFTER_SECONDS * (1 + self._clock.chance()), 1),
            fix="submit again after retry_after seconds, or use submit_many, which slows down by itself",
        ) from refused


def encoded(source: Iterator[Any], limit: int) -> list[bytes]:
    """Return the JSON bodies of the iterator's next values: at most `most`, and fewer when the bodies are large.

    Raises:
        InvalidTask: when a value cannot be written as JSON.
    """
    bodies: list[bytes] = []
    size = 0
    for value in islice(source, limit):
        bodies.append(encode_any(value))
        size += len(bodies[-1])
        if size >= MAX_WINDOW_BYTES:
            break
    return bodies


def _limits(options: Options, now_ms: int, *, exclusive: bool) -> Limits:
    """Return the limits of a direct task; only the preferred agent may run an `exclusive` one.

    Raises:
        ControlPlaneRequired: for a time limit over 25 minutes.
    """
    if options.timeout is not None and seconds(options.timeout) > LONGEST_DIRECT_TIMEOUT_SECONDS:
        raise ControlPlaneRequired(
            "A direct task runs at most 25 minutes",
            timeout=options.timeout,
            fix="make it durable: submit(..., durable=True), or `coditect task submit --detach`",
        )
    return Limits(
        deadline_ms=None if options.deadline is None else deadline_at(options.deadline, now_ms),
        start_by_ms=_later(now_ms, options.start_within),
        timeout_ms=None if options.timeout is None else int(seconds(options.timeout) * 1000),
        max_attempts=options.max_attempts,
        only=options.pin if exclusive else None,
    )


def _later(now_ms: int, span: Duration | None) -> int | None:
    return None if span is None else now_ms + int(seconds(span) * 1000)


# One request to several agents at once (`Client.ask_all`): each agent answers for itself, or its answer says why not.
#
# Each agent gets a task that no other agent may run. If the agent does not take it within a second, another agent
# returns the task unread, and it is sent again, until the time is over. An agent of an older version runs it; that is
# an error.

NOT_TAKEN_RETRY_SECONDS = 0.5
"""The pause before an agent that did not take its task is asked again, and the age of a look at the registry."""
SPARE_SECONDS = 5.0
"""How much later than the asker's time the tasks' deadline is: tasks without an answer are canceled before it."""
UNWANTED = "its answer is not wanted any more"
LEAVING_STATUSES = (AgentStatus.DRAINING, AgentStatus.OFFLINE)


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of one agent to `Client.ask_all`: its result, or the error that prevented one."""

    agent: str
    """The agent as it was asked for: its id or its name."""
    agent_id: AgentId | None = None
    """The process that was asked; None if no living process has the id or name and offers the capability."""
    value: Any = None
    error: CoditectError | None = None
    """Why there is no value: NotFound, TaskFailed, TaskRejected, ResultTimeout, or an error of `Client.submit`."""


@dataclass(slots=True, eq=False)
class GroupRequest:
    """The request that `Client.ask_all` sends to each agent, and what the answers of all agents are read with."""

    capability: str
    body: bytes
    options: Options
    timeout_seconds: float
    model: Any
    lane: DirectLane
    registry: Registry
    clock: Clock
    living: tuple[AgentRecord, ...]
    """The living agents as the last look at the registry found them, which all answers share."""
    _looked_at: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock)
    _sent: dict[str, tuple[TaskId, AgentId]] = field(default_factory=dict)
    """The task without an answer that each agent was sent, and the process that it was sent to."""

    async def answers(self, agents: Iterable[str], background: Supervisor) -> AsyncGenerator[Answer, None]:
        """Ask all agents, and yield each agent's answer as it comes, at the latest when the time is over.

        In the end the tasks without an answer are canceled in the background, even if the caller is canceled.
        """
        until = asyncio.get_running_loop().time() + self.timeout_seconds
        asked = {
            background.start(self._answer(agent, until), name=f"ask {agent}", awaited=True)
            for agent in dict.fromkeys(agents)
        }
        try:
            while asked:
                answered, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                for answer in answered:
                    yield answer.result()
        finally:
            for waiting in asked:
                waiting.cancel()
            unwanted = [
                background.start(self.lane.withdraw(*sent, reason=UNWANTED), name="withdraw a task")
                for sent in self._sent.values()
            ]
            if unwanted:
                await asyncio.wait(unwanted)

    async def _answer(self, agent: str, until: float) -> Answer:
        """Return an agent's answer: the value, or why there is none."""
        agent_id, returned = None, False
        try:
            async with asyncio.timeout_at(until):
                task_id, now = self.clock.new_id(), asyncio.get_running_loop().time
                while True:  # under one id: a process that has the task already runs it once
                    agent_id = process_of(agent, self.capability, self.living).agent_id
                    options = replace(
                        self.options, task_id=task_id, pin=agent_id, deadline=until - now() + SPARE_SECONDS
                    )
                    self._sent[agent] = task_id, agent_id  # also if the submit is canceled
                    outcome = await self._outcome(options)
                    del self._sent[agent]
                    if outcome.failure is None:
                        return self._judged(agent, agent_id, outcome)
                    if outcome.failure.reason != NOT_TAKEN.reason:
                        raise task_error(outcome)
                    returned = True
                    await asyncio.sleep(NOT_TAKEN_RETRY_SECONDS)
                    await self._look()
        except TimeoutError:
            return Answer(agent, agent_id, error=await self._why_not(agent_id, returned=returned))
        except CoditectError as error:
            return Answer(agent, agent_id, error=error)

    async def _outcome(self, options: Options) -> Outcome:
        handle = await self.lane.submit(self.capability, self.body, options, exclusive=True)
        try:
            return await handle.outcome(timeout=self.timeout_seconds + SPARE_SECONDS)
        finally:
            handle.forget()

    def _judged(self, agent: str, agent_id: AgentId, outcome: Outcome) -> Answer:
        """Return an agent's answer with its value; an agent of an older version may have run a task of another's."""
        if outcome.agent_id and outcome.agent_id != agent_id:
            facts = {"asked": agent_id, "ran_it": outcome.agent_id, "task_id": outcome.task_id}
            fix = "update the agents of this capability"
            return Answer(agent, agent_id, error=TaskError("Another agent ran the task", **facts, fix=fix))
        return Answer(agent, agent_id, value_of(outcome, self.model))

    async def _look(self) -> None:
        """Look at the registry, unless the last look is at most half a second old; if it fails, keep what is known."""
        async with self._looking:
            if asyncio.get_running_loop().time() - self._looked_at < NOT_TAKEN_RETRY_SECONDS:
                return
            with suppress(CoditectError):
                self.living = await self.registry.find(Search())
            self._looked_at = asyncio.get_running_loop().time()

    async def _why_not(self, agent_id: AgentId | None, *, returned: bool) -> CoditectError:
        """Return the error of an agent that did not answer in time, with what the registry says about the agent."""
        facts: dict[str, object] = {"agent": agent_id, "timeout_seconds": self.timeout_seconds}
        await self._look()
        record = next((record for record in self.living if record.agent_id == agent_id), None)
        if record is None:
            return NotFound("The agent has gone", **facts)
        load = record.load
        facts |= {"status": load.status.value, "running": load.running, "slots": record.registration.slots}
        if returned:
            return ResultTimeout("The agent was too busy to take the task in time", **facts)
        return ResultTimeout("The agent did not answer in time", **facts)


def offering(capability: str, living: tuple[AgentRecord, ...]) -> list[AgentId]:
    """Return the ids of the agent processes that offer a capability.

    Raises:
        UnknownCapability: when there are none; the error names similar capabilities.
    """
    found = [record.agent_id for record in living if Search(capability).matches(record)]
    if not found:
        names = {spec.name for record in living for spec in record.registration.capabilities}
        near = nearest_names(capability, names)
        raise UnknownCapability("No living agent offers this capability", capability=capability, nearest=near)
    return found


def process_of(agent: str, capability: str, living: tuple[AgentRecord, ...]) -> AgentRecord:
    """Return the process with the most free slots of an agent's processes that offer a capability.

    `agent` is an id or a name. A process that is draining is taken only if all are.

    Raises:
        NotFound: when there is none; the error names similar agents, or what the agent offers.
    """
    named = [record for record in living if agent in (record.agent_id, record.registration.name)]
    if not named:
        names = {name for record in living for name in (record.agent_id, record.registration.name)}
        raise NotFound("No agent has this id or name", target=agent, nearest=nearest_names(agent, names))
    able = [record for record in named if Search(capability).matches(record)]
    if not able:
        offers = sorted({spec.name for record in named for spec in record.registration.capabilities})
        raise NotFound("The agent does not offer this action", target=agent, action=capability, offers=offers)
    return max(able, key=lambda record: (record.load.status not in LEAVING_STATUSES, record.free_slots))
