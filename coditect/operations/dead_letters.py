"""The use cases of dead letters: list, redrive and discard them, and redrive workflow nodes that were given up.

Every function raises BrokerUnavailable, which is retryable, when the broker does not answer at its start. `note` is
called for what cannot be seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from secrets import token_hex

from coditect.aio.clock import Clock, SystemClock
from coditect.broker.management import ManagementUnavailable
from coditect.broker.port import Broker, Delivery
from coditect.errors import BrokerUnavailable, CoditectError, InputError, NotFound, Unroutable
from coditect.model.task import Task
from coditect.operations.connections import Connections
from coditect.operations.fleet import Note, known_capabilities, unnoted
from coditect.operations.letter import DeadLetter, read_dead_letter, revive
from coditect.operations.status import has_dispatcher
from coditect.settings.settings import read_settings
from coditect.telemetry.process import open_tracing
from coditect.telemetry.tracing import NO_TRACING, Tracing, begin_publish, ended_with
from coditect.wire import routing, tasks
from coditect.workflow.rows import DeadRow

# The dead letters of direct tasks: browse, redrive and discard.
#
# To browse is to `get` messages until the queue is empty, and then to `release` them all back into the queue. AMQP
# cannot list queues, so the caller names the capabilities (the registry knows those of living agents).

WINDOW = 100
"""The number of dead letters handled at once; a redrive that is killed repeats at most as many."""
WINDOW_BYTES = 16 * 1024 * 1024
"""The most bytes of dead letters' bodies in memory at once, exceeded by one body at most."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The criteria that select dead letters: each set field must match; without fields all letters match."""

    ids: frozenset[str] = frozenset()
    capability: str | None = None
    reason: str | None = None
    agent_id: str | None = None
    keyword: str | None = None
    """A text to find, in any case, in a letter's error or body; a workflow's node is not searched."""

    def takes(self, letter: DeadLetter) -> bool:
        """Tell whether the criteria select a dead letter."""
        if (self.ids and letter.id not in self.ids) or not self._says(letter):
            return False
        return self.fits(capability=letter.capability, reason=letter.reason, agent_id=letter.agent_id)

    def _says(self, letter: DeadLetter) -> bool:
        if self.keyword is None:
            return True
        error = f"{letter.error.type}: {letter.error.message}" if letter.error else ""
        return self.keyword.casefold() in f"{error}\n{letter.body.decode(errors='replace')}".casefold()

    def fits(self, *, capability: str | None, reason: str | None, agent_id: str | None) -> bool:
        """Tell whether a capability, reason and agent match the criteria; ids and keyword do not count here."""
        return (
            self.capability in (None, capability)
            and self.reason in (None, reason)
            and self.agent_id in (None, agent_id)
        )


@dataclass(frozen=True, slots=True)
class DeadQueue:
    """An existing queue of dead letters, with its number of messages."""

    name: str
    messages: int


@dataclass(frozen=True, slots=True)
class KeptLetter:
    """A dead letter that a redrive or discard left in its queue, with the reason."""

    id: str | None
    queue: str
    error: CoditectError


@dataclass(frozen=True, slots=True)
class SettledLetter:
    """The result of a redrive or discard of dead letters; in a dry run, the result that a real run would have."""

    count: int
    ids: tuple[str, ...]
    """The task ids of the settled letters that have an id."""
    kept: tuple[KeptLetter, ...] = ()
    stopped: CoditectError | None = None
    """The error that ended the run early; the remaining letters stay in their queues, and the run can be repeated."""
    dry_run: bool = False

    def shortfall(self, selection: Selection) -> CoditectError | None:
        """Return the error that says why selected dead letters were not settled; None when all were.

        The causes are an early stop, an unknown id, and letters that were kept.
        """
        missing = selection.ids - set(self.ids) - {kept.id for kept in self.kept if kept.id}
        if self.stopped is not None:
            return self.stopped
        if missing:
            return NotFound("No dead letter has this id", ids=tuple(sorted(missing)))
        return CoditectError("Not every letter could be settled", kept=len(self.kept)) if self.kept else None


@dataclass(frozen=True, slots=True)
class _Held:
    delivery: Delivery
    letter: DeadLetter


_Takes = Callable[[DeadLetter], bool]
_Settle = Callable[[Sequence[_Held]], Awaitable[Sequence[CoditectError | None]]]


class DeadLetters:
    """The queues of dead letters of one broker; the connection must be the caller's alone while a call runs."""

    def __init__(self, broker: Broker, clock: Clock, tracing: Tracing = NO_TRACING) -> None:
        self._broker, self._tracing = broker, tracing
        self._clock = clock

    async def queues(self, capabilities: Iterable[str]) -> tuple[DeadQueue, ...]:
        """Return those dead-letter queues of the given capabilities that exist, and `unrouted` if it does.

        Raises:
            BrokerUnavailable: when the broker does not answer; retryable.
        """
        names = [routing.dead_queue(name) for name in sorted(set(capabilities))]
        found = []
        for name in (*names, routing.UNROUTED_QUEUE):
            stats = await self._broker.stats(name)
            if stats is not None:
                found.append(DeadQueue(name, stats.messages))
        return tuple(found)

    async def browse(
        self, queues: Iterable[str], selection: Selection, *, most: int
    ) -> AsyncGenerator[DeadLetter, None]:
        """Yield at most `most` selected dead letters, oldest first in each queue; all return to their queues.

        A caller that stops early closes the generator (`contextlib.aclosing`), so that the letters go back at once.

        Raises:
            BrokerUnavailable: when the broker does not answer; retryable.
        """
        left = most
        try:
            async with aclosing(self._held(queues, selection.takes)) as held:
                async for one in held:
                    yield one.letter
                    left -= 1
                    if left <= 0:
                        return
        finally:
            await self._release()

    async def show(self, queues: Iterable[str], letter_id: str) -> DeadLetter:
        """Return the dead letter with a given task id, and leave it in its queue.

        Raises:
            NotFound: when the letter is in none of the queues.
            BrokerUnavailable: when the broker does not answer; retryable.
        """
        names = tuple(queues)
        async with aclosing(self.browse(names, Selection(frozenset({letter_id})), most=1)) as letters:
            async for letter in letters:
                return letter
        raise NotFound("No dead letter has this id", id=letter_id, queues=names, fix="coditect dead list")

    async def redrive(
        self, queues: Iterable[str], selection: Selection, *, dry_run: bool = False, keep_limits: bool = False
    ) -> SettledLetter:
        """Publish the selected dead letters as fresh tasks to `coditect.tasks`, then ack the letters, in that order.

        Keeps id, reply address, owner and history; the attempts start again at 1, and limits that have passed are
        dropped unless `keep_limits`. A run that is killed at any instant loses nothing, and its repetition publishes at
        most the letters of one window twice. A letter that dies again during the run is not taken twice. A letter
        whose capability has no queue stays (Unroutable), and so does a letter that is no valid task (InvalidTask).
        The first retryable error ends the run; the result tells it.
        """
        now_ms = self._clock.now_ms()
        run = _Redrive(self._broker, self._tracing, now_ms=now_ms, dry_run=dry_run, keep_limits=keep_limits)

        def takes(letter: DeadLetter) -> bool:
            died_again = letter.redrives > 0 and letter.dead_at_ms is not None and letter.dead_at_ms >= now_ms
            return selection.takes(letter) and not died_again

        return await self._settle(queues, takes, run.settle, dry_run=dry_run)

    async def discard(self, queues: Iterable[str], selection: Selection, *, dry_run: bool = False) -> SettledLetter:
        """Delete the selected dead letters for good; a dry run only counts them. A lost connection ends the run."""

        def discarded(held: _Held) -> CoditectError | None:
            if held.delivery.lost:
                return BrokerUnavailable("The connection was lost before the letter was discarded; it stays")
            if not dry_run:
                held.delivery.ack()
            return None

        async def settle(window: Sequence[_Held]) -> Sequence[CoditectError | None]:
            return [discarded(held) for held in window]

        return await self._settle(queues, selection.takes, settle, dry_run=dry_run)

    async def _settle(self, queues: Iterable[str], takes: _Takes, settle: _Settle, *, dry_run: bool) -> SettledLetter:
        settled: list[str | None] = []
        kept: list[KeptLetter] = []
        stopped: CoditectError | None = None
        try:
            async with aclosing(self._windows(queues, takes)) as windows:
                async for window in windows:
                    errors = await settle(window)
                    for held, error in zip(window, errors, strict=True):
                        if error is None:
                            settled.append(held.letter.id)
                        else:
                            kept.append(KeptLetter(held.letter.id, held.letter.queue, error))
                    stopped = next((error for error in errors if error and error.retryable), None)
                    if stopped:
                        break
        except BrokerUnavailable as error:
            stopped = error
        finally:
            await self._release()
        return SettledLetter(len(settled), tuple(filter(None, settled)), tuple(kept), stopped, dry_run)

    async def _windows(self, queues: Iterable[str], takes: _Takes) -> AsyncGenerator[tuple[_Held, ...], None]:
        window: list[_Held] = []
        size = 0
        async with aclosing(self._held(queues, takes)) as held:
            async for one in held:
                window.append(one)
                size += len(one.letter.body)
                if len(window) == WINDOW or size >= WINDOW_BYTES:
                    yield tuple(window)
                    window, size = [], 0
        if window:
            yield tuple(window)

    async def _held(self, queues: Iterable[str], takes: _Takes) -> AsyncGenerator[_Held, None]:
        for queue in queues:
            stats = await self._broker.stats(queue)
            # Bounded: what dies while we look would otherwise keep us here for ever.
            for _ in range(0 if stats is None else stats.messages + WINDOW):
                try:
                    delivery = await self._broker.get(queue)
                except NotFound:
                    break
                if delivery is None:
                    break
                letter = read_dead_letter(delivery)
                if takes(letter):
                    yield _Held(delivery, letter)

    async def _release(self) -> None:
        # Without a connection there is nothing to give back: the broker has it all.
        with suppress(BrokerUnavailable):
            await self._broker.release()


class _Redrive:
    """The redrive of dead letters: it publishes them as fresh tasks, in batches, and acks each after its confirm."""

    def __init__(self, broker: Broker, tracing: Tracing, *, now_ms: int, dry_run: bool, keep_limits: bool) -> None:
        self._broker, self._tracing = broker, tracing
        self._now_ms = now_ms
        self._dry_run = dry_run
        self._keep_limits = keep_limits
        self._routable: dict[str, bool] = {}

    async def settle(self, window: Sequence[_Held]) -> Sequence[CoditectError | None]:
        """Redrive a batch of dead letters; return for each letter None, or the error that keeps it in its queue."""
        revived = [self._revive(held) for held in window]
        for task in revived:
            if isinstance(task, Task):
                await self._look_up(task)
        async with asyncio.TaskGroup() as group:
            publishes = [
                group.create_task(self._publish(held, task)) for held, task in zip(window, revived, strict=True)
            ]
        return [publish.result() for publish in publishes]

    def _revive(self, held: _Held) -> Task | InputError:
        try:
            return revive(held.delivery, held.letter, now_ms=self._now_ms, keep_limits=self._keep_limits)
        except InputError as error:
            return error

    async def _look_up(self, task: Task) -> None:
        # `coditect.tasks` has an alternate exchange: what has no queue would move to `unrouted`, not return.
        if routing.key_of(task) not in self._routable:
            queue = routing.task_queue(task.capability, task.priority)
            self._routable[routing.key_of(task)] = await self._broker.stats(queue) is not None

    async def _publish(self, held: _Held, task: Task | InputError) -> CoditectError | None:
        if not isinstance(task, Task):
            return task
        if not self._routable[routing.key_of(task)]:
            return Unroutable("The capability has no queue; the letter stays", key=routing.key_of(task))
        if held.delivery.lost:
            return BrokerUnavailable("The connection was lost before the letter was published; it stays")
        if self._dry_run:
            return None
        sent, routing_key = held.delivery.message, routing.key_of(task)
        span = begin_publish(self._tracing, task, exchange=routing.TASKS, routing_key=routing_key)
        message = replace(
            tasks.task_message(task, trace=span),
            content_type=sent.content_type,
            expiration_ms=sent.expiration_ms if self._keep_limits else None,
            app_id=sent.app_id,
        )
        publish = self._broker.publish(message, exchange=routing.TASKS, routing_key=routing_key)
        try:
            await (publish if span is None else ended_with(span, publish))
        except CoditectError as error:
            return error
        held.delivery.ack()
        return None


@dataclass(frozen=True, slots=True)
class DeadListing:
    """The result of listing dead letters, without the letters: the queues searched, and the workflow nodes given up."""

    queues: tuple[DeadQueue, ...]
    """The queues of dead letters that were searched."""
    nodes: list[DeadRow]
    """The selected workflow nodes that were given up; empty without a control plane."""


async def list_dead(
    opened: Connections, selection: Selection, *, most: int, each: Callable[[DeadLetter], None], note: Note = unnoted
) -> DeadListing:
    """Pass each selected dead letter to the function `each`; return the queues searched, and the given-up nodes.

    Letters and workflow nodes are at most `most` in all. Letters come oldest first in each queue, and stay there; none
    is kept, since their bodies are large. Letters of a capability that no agent offers now are found when the selection
    names it, or by the broker's management API.
    """
    async with opened.broker() as broker:
        letters = DeadLetters(broker, SystemClock())
        queues = await _queues(opened, letters, selection.capability, note)
        names = [queue.name for queue in queues]
        async with aclosing(letters.browse(names, selection, most=most)) as browsed:
            async for letter in browsed:
                each(letter)
                most -= 1
        return DeadListing(queues, await _dead_nodes(opened, broker, selection, most, note))


async def show_letter(
    opened: Connections, letter_id: str, *, capability: str | None, note: Note = unnoted
) -> DeadLetter:
    """Return the dead letter with the given id, and leave it in its queue; search the queues that `list_dead` lists.

    Raises:
        NotFound: when the letter is in none of the queues.
    """
    async with _letters(opened, capability, note) as (letters, queues):
        return await letters.show(queues, letter_id)


async def redrive_letters(
    opened: Connections, selection: Selection, *, dry_run: bool, keep_limits: bool, note: Note = unnoted
) -> SettledLetter:
    """Publish the selected dead letters as fresh tasks, and remove each after its confirm; a dry run only reports."""
    settings = read_settings(opened.environ)
    async with (
        open_tracing(settings, service="coditect-client", instance=f"redrive-{token_hex(4)}") as tracing,
        _letters(opened, selection.capability, note, tracing) as (letters, queues),
    ):
        return await letters.redrive(queues, selection, dry_run=dry_run, keep_limits=keep_limits)


async def discard_letters(
    opened: Connections, selection: Selection, *, dry_run: bool, note: Note = unnoted
) -> SettledLetter:
    """Delete the selected dead letters for good; with `dry_run` only report which these are."""
    async with _letters(opened, selection.capability, note) as (letters, queues):
        return await letters.discard(queues, selection, dry_run=dry_run)


@asynccontextmanager
async def _letters(
    opened: Connections, capability: str | None, note: Note, tracing: Tracing = NO_TRACING
) -> AsyncIterator[tuple[DeadLetters, list[str]]]:
    """Open a broker connection; yield what reads and settles its dead letters, and the names of queues to search."""
    async with opened.broker() as broker:
        letters = DeadLetters(broker, SystemClock(), tracing)
        yield letters, [queue.name for queue in await _queues(opened, letters, capability, note)]


async def _queues(
    opened: Connections, letters: DeadLetters, capability: str | None, note: Note
) -> tuple[DeadQueue, ...]:
    names = await known_capabilities(opened, [capability] if capability else [], note=note)
    return await letters.queues(names if capability else {*names, *await _had_letters(opened, note)})


async def _had_letters(opened: Connections, note: Note) -> list[str]:
    """Return the capabilities that have a queue of dead letters, even if no living agent offers them; [] if unknown."""
    try:
        bindings = await opened.bindings()
    except ManagementUnavailable as error:
        note(f"Queues of capabilities that no agent offers now are unknown: {error}")
        return []
    if bindings is None:
        note("Without CODITECT_MANAGEMENT_URL only --capability finds letters of what no agent offers now.")
    prefix = routing.dead_queue("")
    queues = {binding.queue for binding in bindings or () if binding.queue.startswith(prefix)}
    return [queue.removeprefix(prefix) for queue in queues - {routing.DEAD_NOTICES}]


async def _dead_nodes(
    opened: Connections, broker: Broker, selection: Selection, most: int, note: Note
) -> list[DeadRow]:
    """Return at most `most` given-up nodes that fit the capability, reason and agent; none without a control plane."""
    found: list[DeadRow] = []
    if most <= 0:
        return found
    async with opened.fleet() as client:
        if not await has_dispatcher(broker):
            return found
        try:
            async for row in client.workflows.dead_nodes():
                node = row.node
                if selection.fits(capability=node.capability, reason=node.reason, agent_id=node.agent):
                    found.append(row)
                if len(found) == most:
                    break
        except CoditectError as error:
            note(f"Nodes of workflows are not shown: {error}")
            return []
    return found
