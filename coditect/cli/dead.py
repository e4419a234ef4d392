"""`coditect dead`: list, show, redrive and discard dead letters."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import ask, complete_agent, complete_capability, connections
from coditect.cli.terminal.options import LimitOption, ShownAnswer, only_with, presented, read_body
from coditect.cli.terminal.output import FieldsView, Output, OutputOption, TableView, View, agree, instant, render, say
from coditect.operations import dead_letters as dead
from coditect.operations.dead_letters import DeadListing, Selection, SettledLetter
from coditect.operations.documents import DeadNodeDocument, LetterDocument, SettledDocument, WholeLetter
from coditect.operations.letter import DeadLetter
from coditect.workflow.rows import DeadRow

app = typer.Typer(no_args_is_help=True)

WIDEST_CELL = 60

CapabilityOption = Annotated[
    str | None,
    typer.Option(
        "--capability",
        "-c",
        help="Only this capability (also one that no agent offers now).",
        autocompletion=complete_capability,
    ),
]
ReasonOption = Annotated[
    str | None, typer.Option("--reason", help="Only this reason, e.g. handler_error, expired, invalid_input.")
]
AgentOption = Annotated[
    str | None, typer.Option("--agent", help="Only given up by this agent.", autocompletion=complete_agent)
]
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
@presented
async def list_letters(
    context: typer.Context,
    capability: CapabilityOption = None,
    reason: ReasonOption = None,
    agent: AgentOption = None,
    limit: LimitOption = 100,
) -> ShownAnswer:
    """List dead letters, oldest first in each queue. Workflow nodes whose agents died are listed after them.

    \b
    Example: coditect dead list --capability hello.greet --reason handler_error
    """
    selection = Selection(capability=capability, reason=reason, agent_id=agent)
    rows: list[dict[str, object]] = []
    notes: list[str] = []
    found = await dead.list_dead(
        connections(context), selection, most=limit, each=lambda letter: rows.append(_row(letter)), note=notes.append
    )
    return _listing(rows, found, notes)


def _listing(rows: list[dict[str, object]], found: DeadListing, notes: list[str]) -> ShownAnswer:
    nodes = [_node_row(node) for node in found.nodes]
    total = sum(queue.messages for queue in found.queues)
    document = {"letters": rows, "nodes": nodes, "queues": {queue.name: queue.messages for queue in found.queues}}
    columns = ("id", "capability", "priority", "reason", "agent", "attempts", "dead_at", "error")
    table = TableView(columns, [[_short(row[name]) for name in columns] for row in rows + nodes], "No dead letters.")
    if len(rows) < total:
        notes = [*notes, f"{len(rows)} shown of {total} in {len(found.queues)} queues."]
    return ShownAnswer(document, (table,), tuple(notes))


@app.command("get")
def get_letter(
    context: typer.Context,
    letter_id: Annotated[str, typer.Argument(metavar="ID", help="The task's id.")],
    capability: CapabilityOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one dead letter: its reason, failed attempts and body.

    \b
    Example: coditect dead get 01890a5d-ac96-774b-bcce-b302099a8057
    """
    letter = run_loop(dead.show_letter(connections(context), letter_id, capability=capability, note=say))
    row, error = _row(letter), letter.error
    views: list[View] = [FieldsView(row | {"error": None})]
    if error is not None:
        views.append(FieldsView({"error": f"{error.type}: {error.message}", "traceback": error.traceback}))
    for entry in letter.errors:
        views.append(FieldsView({"earlier": ", ".join(f"{name}={value}" for name, value in entry.items())}))
    views.append(FieldsView({"body": letter.body[:10_000].decode(errors="replace")}))
    render(output, WholeLetter.of(letter), *views)


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
    """Publish dead letters again as fresh tasks. A letter that cannot be redriven stays in its queue.

    With --node, run a node of a workflow again that ended without a value, from its recorded input or the one that
    --input gives; its dependents go on after it. An element of a map stands for its map, whose elements run again that
    did not complete.

    \b
    Example: coditect dead redrive --capability hello.greet --reason handler_error --yes
             coditect dead redrive --node 01890a5d-ac96-774b-bcce-b302099a8057:tests --dry-run
    """
    only_with(context, ("node",), "body")
    if node is not None:
        if ids or capability or reason or agent or everything:
            raise typer.BadParameter("--node excludes --id, --capability, --reason, --agent and --all")
        _redrive_node(context, node, body, dry_run=dry_run, yes=yes, output=output)
        return
    selection = _selection(ids, capability, reason, agent, everything=everything)
    agree("Bring the matching dead letters back?", yes=yes or dry_run)
    work = dead.redrive_letters(connections(context), selection, dry_run=dry_run, keep_limits=keep_limits, note=say)
    _report("redriven", run_loop(work), selection, output)


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
    """Delete dead letters for good.

    \b
    Example: coditect dead discard --id 01890a5d-ac96-774b-bcce-b302099a8057 --yes
    """
    selection = _selection(ids, capability, reason, agent, everything=everything)
    agree("Throw the matching dead letters away for good?", yes=yes or dry_run)
    settled = run_loop(dead.discard_letters(connections(context), selection, dry_run=dry_run, note=say))
    _report("discarded", settled, selection, output)


def _redrive_node(
    context: typer.Context, target: str, body: str | None, *, dry_run: bool, yes: bool, output: Output
) -> None:
    workflow, _, named = target.partition(":")
    node = named.partition("[")[0] if named.endswith("]") else named  # an element of a map runs with its map
    if not workflow or not node:
        raise typer.BadParameter("--node is WORKFLOW:NODE, as `coditect workflow get` has them")
    value = None if body is None else read_body(body)
    agree(f"Run {node} and what comes after it again?", yes=yes or dry_run)
    report = ask(context, lambda client: client.workflows.get(workflow).redrive(node, value, dry_run=dry_run))
    names = [str(name) for name in report.get("again") or [node]]
    some, more = (f"{len(names)} and more", ", ...") if report.get("more") else (str(len(names)), "")
    render(output, report, f"{some} {'would begin' if dry_run else 'begin'} again: {', '.join(names)}{more}")


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
    would = "would be " if settled.dry_run else ""
    rows = [(letter.id, letter.queue, str(letter.error)) for letter in settled.kept]
    table = TableView(("id", "queue", "kept because"), rows)
    render(output, SettledDocument.of(settled), f"{settled.count} {would}{verb}, {len(settled.kept)} kept.", table)
    if (shortfall := settled.shortfall(selection)) is not None:
        raise shortfall


def _row(letter: DeadLetter) -> dict[str, object]:
    return asdict(LetterDocument.of(letter)) | {"dead_at": instant(letter.dead_at_ms)}


def _short(value: object) -> object:
    if isinstance(value, str) and len(value) > WIDEST_CELL:
        return value[: WIDEST_CELL - 1] + "…"
    return value


def _node_row(row: DeadRow) -> dict[str, object]:
    """Return a dead workflow node as a row of the dead-letter table, with the id that `dead redrive --node` takes."""
    more = {"id": f"{row.workflow}:{row.node.name}", "dead_at": instant(row.node.finished_at_ms)}
    return asdict(DeadNodeDocument.of(row)) | more
