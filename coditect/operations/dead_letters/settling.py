"""The use cases of dead letters: list, redrive and discard them, and redrive workflow nodes that were given up.

Every function raises BrokerUnavailable, which is retryable, when the broker does not answer at its start. `note` is
called for what cannot be seen.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from secrets import token_hex
from typing import Any

from coditect.aio.clock import SystemClock
from coditect.broker.management import ManagementUnavailable
from coditect.broker.port import Broker
from coditect.errors import CoditectError
from coditect.operations.connections import Connections
from coditect.operations.dead_letters.letter import DeadLetter
from coditect.operations.dead_letters.queues import DeadLetters, DeadQueue, Selection, SettledLetter
from coditect.operations.fleet import Note, known_capabilities
from coditect.settings.settings import read_settings
from coditect.telemetry.tracing.choose import open_tracing
from coditect.telemetry.tracing.port import NO_TRACING, Tracing
from coditect.wire import routing
from coditect.workflow.rows import DeadRow


@dataclass(frozen=True, slots=True)
class DeadListing:
    """The result of listing dead letters, without the letters: the queues searched, and the workflow nodes given up."""

    queues: tuple[DeadQueue, ...]
    """The queues of dead letters that were searched."""
    nodes: list[DeadRow]
    """The selected workflow nodes that were given up; empty without a control plane."""


async def list_dead(
    opened: Connections, selection: Selection, *, most: int, each: Callable[[DeadLetter], None], note: Note
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


async def show_letter(opened: Connections, letter_id: str, *, capability: str | None, note: Note) -> DeadLetter:
    """Return the dead letter with the given id, and leave it in its queue; search the queues that `list_dead` lists.

    Raises:
        NotFound: when the letter is in none of the queues.
    """
    async with _letters(opened, capability, note) as (letters, queues):
        return await letters.show(queues, letter_id)


async def redrive_letters(
    opened: Connections, selection: Selection, *, dry_run: bool, keep_limits: bool, note: Note
) -> SettledLetter:
    """Publish the selected dead letters as fresh tasks, and remove each after its confirm; a dry run only reports."""
    settings = read_settings(opened.environ)
    async with (
        open_tracing(settings, service="coditect-client", instance=f"redrive-{token_hex(4)}") as tracing,
        _letters(opened, selection.capability, note, tracing) as (letters, queues),
    ):
        return await letters.redrive(queues, selection, dry_run=dry_run, keep_limits=keep_limits)


async def discard_letters(opened: Connections, selection: Selection, *, dry_run: bool, note: Note) -> SettledLetter:
    """Delete the selected dead letters for good; with `dry_run` only report which these are."""
    async with _letters(opened, selection.capability, note) as (letters, queues):
        return await letters.discard(queues, selection, dry_run=dry_run)


async def redrive_node(
    opened: Connections, workflow: str, node: str, value: bytes | None, *, dry_run: bool
) -> dict[str, Any]:
    """Run again a workflow node that ended without a value, on its old input or `value`; a dry run only describes it.

    Returns the control plane's answer: `again` names nodes that begin again, or would with `dry_run`; `more` is true
    when there are others.

    Raises:
        InputError: when the ledger refuses the redrive.
        NotFound: when the ledger has no such node.
        ControlPlaneRequired: when no dispatcher answers.
    """
    async with opened.fleet() as client:
        return await client.run(workflow).redrive(node, value, dry_run=dry_run)


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
        stats = await broker.stats(routing.CONTROL_QUEUE)
        if stats is None or not stats.consumers:
            return found
        try:
            async for row in client.dead_nodes():
                node = row.node
                if selection.fits(capability=node.capability, reason=node.reason, agent_id=node.agent):
                    found.append(row)
                if len(found) == most:
                    break
        except CoditectError as error:
            note(f"Nodes of workflows are not shown: {error}")
            return []
    return found
