"""`coditect dead redrive --node`: a node of a workflow runs again."""

from __future__ import annotations

from typing import Any

import typer

from coditect.cli.body import read_body
from coditect.cli.connections import Connections
from coditect.cli.output import Output, agree, write_json
from coditect.loop import run_loop


def redrive_node(
    opened: Connections, target: str, body: str | None, *, dry_run: bool, yes: bool, output: Output
) -> None:
    """Runs it again, or with `dry_run` says what would begin anew. Raises: InputError, NotFound of the ledger."""
    workflow, _, node = target.partition(":")
    if not workflow or not node:
        raise typer.BadParameter("--node is WORKFLOW:NODE, as `coditect workflow show` has them")
    value = None if body is None else read_body(body)
    agree(f"Run {node} and what comes after it again?", yes=yes or dry_run)
    told = run_loop(_redrive(opened, workflow, node, value, dry_run=dry_run))
    if output is Output.JSON:
        write_json(told)
        return
    again = [str(name) for name in told.get("again") or [node]]
    some, rest = (f"{len(again)} and more", ", ...") if told.get("more") else (str(len(again)), "")
    typer.echo(f"{some} {'would begin' if dry_run else 'begin'} anew: {', '.join(again)}{rest}")


async def _redrive(
    opened: Connections, workflow: str, node: str, value: bytes | None, *, dry_run: bool
) -> dict[str, Any]:
    async with opened.fleet() as client:
        return await client.run(workflow).redrive(node, value, dry_run=dry_run)
