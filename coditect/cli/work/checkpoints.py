"""`coditect workflow checkpoint`, `checkpoints` and `restore`: bring a workflow back to where it was."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from coditect.aio.loop import run_loop
from coditect.cli.connections import connections
from coditect.cli.observe.completion import complete_workflow
from coditect.cli.terminal.output import Output, OutputOption, TableView, agree, instant, render, say
from coditect.cli.terminal.user import ByOption, user_name
from coditect.cli.terminal.watch import ShownAnswer, WatchOption, present
from coditect.operations.workflows import checkpoints

app = typer.Typer()

RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="The workflow's id, as `workflow list` shows it.", autocompletion=complete_workflow
    ),
]


@app.command("checkpoint")
def make_checkpoint(
    context: typer.Context,
    run: RunArgument,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name: letters, digits, dots, hyphens and _.")],
) -> None:
    """Give the present position of a workflow a name. Every completed node is a checkpoint without that.

    \b
    Example: coditect workflow checkpoint 01890a5d-ac96-774b-bcce-b302099a8057 before-release
    """
    run_loop(checkpoints.make_checkpoint(connections(context), run, name))
    say(f"{run}: {name} is a checkpoint.")


@app.command("checkpoints")
def list_checkpoints(
    context: typer.Context,
    run: RunArgument,
    output: OutputOption = Output.TABLE,
    watch: WatchOption = False,
) -> None:
    """List the checkpoints of a workflow, the earliest first: its completed nodes, and those on request.

    \b
    Example: coditect workflow checkpoints 01890a5d-ac96-774b-bcce-b302099a8057
    """
    opened = connections(context)

    async def look() -> ShownAnswer:
        rows = await checkpoints.list_checkpoints(opened, run)
        cells = [(row.name, "node" if row.node else "on request", instant(row.at_ms), row.by) for row in rows]
        return ShownAnswer(rows, (TableView(("checkpoint", "kind", "at", "by"), cells, "No node has completed yet."),))

    present(look, output, watch=watch)


@app.command("restore")
def restore_workflow(
    context: typer.Context,
    run: RunArgument,
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="As `workflow checkpoints` names it.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask about what cannot be undone.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be discarded.")] = False,
    by: ByOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Bring a workflow back to a checkpoint: what came later is undone where declared, and runs again.

    Lists first which nodes have begun since, and asks when effects of theirs cannot be undone.

    \b
    Example: coditect workflow restore 01890a5d-ac96-774b-bcce-b302099a8057 tests --yes
    """
    opened = connections(context)
    plan = run_loop(checkpoints.plan_restore(opened, run, checkpoint))
    nodes = sorted(plan.nodes, key=lambda row: row.compensated)
    cells = [(row.node, row.state.value, "is undone" if row.compensated else "cannot be undone") for row in nodes]
    document = {"workflow": run, "checkpoint": checkpoint, "dry_run": dry_run, "discarded": [*map(asdict, nodes)]}
    render(output, document, TableView(("node", "state", "what it did"), cells, "No node has begun since."))
    if dry_run:
        return
    if plan.lasting:
        agree(f"What {len(plan.lasting)} of these nodes did cannot be undone. Restore all the same?", yes=yes)
    who = by or user_name()
    run_loop(checkpoints.restore_workflow(opened, run, plan, by=who))
    say(f"{run}: the restore to {checkpoint} was accepted, by {who}.")
