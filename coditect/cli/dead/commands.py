"""`coditect dead`: list, show, redrive and discard dead letters."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Annotated

import typer

from coditect.aio.clock import SystemClock
from coditect.aio.loop import run_loop
from coditect.broker.management import ManagementUnavailable
from coditect.cli.capability import known_capabilities
from coditect.cli.connections import Connections, connections
from coditect.cli.dead.node import dead_nodes, dead_row, redrive_node
from coditect.cli.terminal.output import (
    Output,
    OutputOption,
    agree,
    instant,
    say,
    write_fields,
    write_json,
    write_table,
)
from coditect.errors import CoditectError, NotFound
from coditect.operations.dead_letter import DeadLetter
from coditect.operations.dead_letters import DeadLetters, DeadQueue, Selection, SettledLetter
from coditect.wire import routing

app = typer.Typer(no_args_is_help=True)

WIDEST_CELL = 60

CapabilityOption = Annotated[
    str | None,
    typer.Option("--capability", "-c", help="Only this capability (also one that no agent offers now)."),
]
ReasonOption = Annotated[
    str | None, typer.Option("--reason", help="Only this reason, e.g. handler_error, expired, invalid_input.")
]
AgentOption = Annotated[str | None, typer.Option("--agent", help="Only given up by this agent.")]
IdsOption = Annotated[list[str] | None, typer.Option("--id", help="Only this task id; can be repeated.")]
AllOption = Annotated[bool, typer.Option("--all", help="Every dead letter; needed when no filter is given.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and change nothing.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
NodeOption = Annotated[
    str | None, typer.Option("--node", metavar="WORKFLOW:NODE", help="A node that ended without a value.")
]
InputOption = Annotated[
    str | None, typer.Option("--input", help="With --node, instead of its recorded input: JSON, @file or -.")
]
LimitsOption = Annotated[
    bool, typer.Option("--keep-limits", help="Keep a deadline that has passed; the task dies again at once.")
]


@app.command("list")
def list_letters(
    context: typer.Context,
    capability: CapabilityOption = None,
    reason: ReasonOption = None,
    agent: AgentOption = None,
    most: Annotated[int, typer.Option("--most", min=1, max=100_000, help="At most so many.")] = 100,
    output: OutputOption = Output.TABLE,
) -> None:
    """List dead letters, oldest first in each queue, and then nodes of workflows whose agents died.

    \b
    Example: coditect dead list --capability code.review --reason handler_error
    """
    selection = Selection(capability=capability, reason=reason, agent_id=agent)
    queues, rows, nodes = run_loop(_list(connections(context), selection, most))
    total = sum(queue.messages for queue in queues)
    if output is Output.JSON:
        write_json({"letters": rows, "nodes": nodes, "queues": {queue.name: queue.messages for queue in queues}})
        return
    columns = ("id", "capability", "priority", "reason", "agent", "attempts", "dead_at", "error")
    write_table(columns, [[_short(row[name]) for name in columns] for row in rows + nodes], empty="No dead letters.")
    if len(rows) < total:
        say(f"{len(rows)} shown of {total} in {len(queues)} queues.")


async def _list(
    opened: Connections, selection: Selection, most: int
) -> tuple[tuple[DeadQueue, ...], list[dict[str, object]], list[dict[str, object]]]:
    async with opened.broker() as broker:
        letters = DeadLetters(broker, SystemClock())
        queues = await _queues(opened, letters, selection.capability)
        names = [queue.name for queue in queues]
        async with aclosing(letters.browse(names, selection, most=most)) as browsed:
            rows = [_row(letter) async for letter in browsed]
        nodes = await dead_nodes(opened, broker, selection, most - len(rows))
        return queues, rows, [dead_row(node) for node in nodes]


@app.command("show")
def show_letter(
    context: typer.Context,
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="The task's id.")],
    capability: CapabilityOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one dead letter: why it died, every failed attempt, and its body.

    \b
    Example: coditect dead show 01890a5d-ac96-774b-bcce-b302099a8057
    """
    letter = run_loop(_show(connections(context), letter_id, capability))
    if output is Output.JSON:
        write_json(_whole(letter))
        return
    row = _row(letter)
    del row["error"]
    write_fields(row)
    if letter.error is not None:
        write_fields({"error": f"{letter.error.type}: {letter.error.message}", "traceback": letter.error.traceback})
    for entry in letter.errors:
        write_fields({"earlier": ", ".join(f"{name}={value}" for name, value in entry.items())})
    write_fields({"body": letter.body[:10_000].decode(errors="replace")})


async def _show(opened: Connections, letter_id: str, capability: str | None) -> DeadLetter:
    async with opened.broker() as broker:
        letters = DeadLetters(broker, SystemClock())
        queues = await _queues(opened, letters, capability)
        return await letters.show([queue.name for queue in queues], letter_id)


@app.command("redrive")
def redrive_letters(
    context: typer.Context,
    ids: IdsOption = None,
    capability: CapabilityOption = None,
    reason: ReasonOption = None,
    agent: AgentOption = None,
    everything: AllOption = False,
    keep_limits: LimitsOption = False,
    node: NodeOption = None,
    body: InputOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Bring dead letters back as fresh tasks; what is not brought back stays where it is.

    With --node, run a node of a workflow again that ended without a value, from its recorded input or the one that
    --input gives; its dependents go on after it. An element of a map stands for its map, whose elements run again that
    did not complete.

    \b
    Example: coditect dead redrive --capability code.review --reason handler_error --yes
             coditect dead redrive --node 01890a5d-ac96-774b-bcce-b302099a8057:tests --dry-run
    """
    if node is not None:
        if ids or capability or reason or agent or everything:
            raise typer.BadParameter("--node excludes --id, --capability, --reason, --agent and --all")
        redrive_node(connections(context), node, body, dry_run=dry_run, yes=yes, output=output)
        return
    if body is not None:
        raise typer.BadParameter("--input is for --node")
    selection = _selection(ids, capability, reason, agent, everything=everything)
    agree("Bring the matching dead letters back?", yes=yes or dry_run)

    async def act(letters: DeadLetters, queues: list[str]) -> SettledLetter:
        return await letters.redrive(queues, selection, dry_run=dry_run, keep_limits=keep_limits)

    settled = run_loop(_settle(connections(context), selection, act))
    _report("redriven", settled, selection, output)


@app.command("discard")
def discard_letters(
    context: typer.Context,
    ids: IdsOption = None,
    capability: CapabilityOption = None,
    reason: ReasonOption = None,
    agent: AgentOption = None,
    everything: AllOption = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Throw dead letters away for good.

    \b
    Example: coditect dead discard --id 01890a5d-ac96-774b-bcce-b302099a8057 --yes
    """
    selection = _selection(ids, capability, reason, agent, everything=everything)
    agree("Throw the matching dead letters away for good?", yes=yes or dry_run)

    async def act(letters: DeadLetters, queues: list[str]) -> SettledLetter:
        return await letters.discard(queues, selection, dry_run=dry_run)

    settled = run_loop(_settle(connections(context), selection, act))
    _report("discarded", settled, selection, output)


async def _settle(
    opened: Connections,
    selection: Selection,
    act: Callable[[DeadLetters, list[str]], Awaitable[SettledLetter]],
) -> SettledLetter:
    async with opened.broker() as broker:
        letters = DeadLetters(broker, SystemClock())
        queues = await _queues(opened, letters, selection.capability)
        return await act(letters, [queue.name for queue in queues])


async def _queues(opened: Connections, letters: DeadLetters, capability: str | None) -> tuple[DeadQueue, ...]:
    names = await known_capabilities(opened, [capability] if capability else [])
    return await letters.queues(names if capability else {*names, *await _had_letters(opened)})


async def _had_letters(opened: Connections) -> list[str]:
    """Return the capabilities with a queue of dead letters, also those that no agent offers now."""
    try:
        bindings = await opened.bindings()
    except ManagementUnavailable as error:
        say(f"Queues of capabilities that no agent offers now are unknown: {error}")
        return []
    if bindings is None:
        say("Without CODITECT_MANAGEMENT_URL only --capability finds letters of what no agent offers now.")
    prefix = routing.dead_queue("")
    queues = {binding.queue for binding in bindings or () if binding.queue.startswith(prefix)}
    return [queue.removeprefix(prefix) for queue in queues - {routing.DEAD_NOTICES}]


def _selection(
    ids: list[str] | None, capability: str | None, reason: str | None, agent: str | None, *, everything: bool
) -> Selection:
    selection = Selection(frozenset(ids or ()), capability, reason, agent)
    if selection == Selection() and not everything:
        raise typer.BadParameter("Say which: --id, --capability, --reason, --agent, or --all")
    if selection.ids and everything:
        raise typer.BadParameter("--all and --id exclude each other")
    return selection


def _report(verb: str, settled: SettledLetter, selection: Selection, output: Output) -> None:
    if output is Output.JSON:
        write_json(
            {
                "dry_run": settled.dry_run,
                verb: settled.count,
                "ids": settled.ids,
                "kept": [
                    {"id": kept.id, "queue": kept.queue, "why": kept.error.sentence, **kept.error.facts}
                    for kept in settled.kept
                ],
                "stopped": str(settled.stopped) if settled.stopped else None,
            }
        )
    else:
        would = "would be " if settled.dry_run else ""
        typer.echo(f"{settled.count} {would}{verb}, {len(settled.kept)} kept.")
        rows = [(kept.id, kept.queue, str(kept.error)) for kept in settled.kept]
        write_table(("id", "queue", "kept because"), rows)
    if settled.stopped is not None:
        raise settled.stopped
    missing = selection.ids - set(settled.ids) - {kept.id for kept in settled.kept if kept.id}
    if missing:
        raise NotFound("No dead letter has this id", ids=tuple(sorted(missing)))
    if settled.kept:
        raise CoditectError("Not every letter could be settled", kept=len(settled.kept))


def _row(letter: DeadLetter) -> dict[str, object]:
    error = letter.error
    return {
        "id": letter.id,
        "capability": letter.capability,
        "priority": letter.priority.value,
        "reason": letter.reason,
        "agent": letter.agent_id,
        "attempts": letter.attempts,
        "redrives": letter.redrives,
        "dead_at": instant(letter.dead_at_ms),
        "error": f"{error.type}: {error.message}"[:200] if error else None,
        "queue": letter.queue,
        "body_bytes": len(letter.body),
    }


def _short(value: object) -> object:
    if isinstance(value, str) and len(value) > WIDEST_CELL:
        return value[: WIDEST_CELL - 1] + "…"
    return value


def _whole(letter: DeadLetter) -> dict[str, object]:
    return {
        **_row(letter),
        "error": letter.error.as_json() if letter.error else None,
        "errors": letter.errors,
        "body": letter.body.decode(errors="replace"),
    }
