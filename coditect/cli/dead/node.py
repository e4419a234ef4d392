"""The nodes of workflows in `coditect dead`: lists the nodes that were given up, and redrives one."""

from __future__ import annotations

from typing import Any

import typer

from coditect.aio.loop import run_loop
from coditect.broker.port import Broker
from coditect.cli.connections import Connections
from coditect.cli.terminal.body import read_body
from coditect.cli.terminal.output import Output, agree, instant, say, write_json
from coditect.client.client import Client
from coditect.errors import CoditectError
from coditect.operations.dead_letters import Selection
from coditect.wire import routing
from coditect.workflow.rows import DeadRow


async def dead_nodes(opened: Connections, broker: Broker, selection: Selection, most: int) -> list[DeadRow]:
    """Return the matching nodes that were given up, `most` of them at most; none without a control plane."""
    if most <= 0:
        return []
    async with opened.fleet() as client:
        stats = await broker.stats(routing.CONTROL_QUEUE)
        if stats is None or not stats.consumers:
            return []
        try:
            return await _matching(client, selection, most)
        except CoditectError as error:
            say(f"Nodes of workflows are not shown: {error}")
            return []


async def _matching(client: Client, selection: Selection, most: int) -> list[DeadRow]:
    found: list[DeadRow] = []
    async for row in client.dead_nodes():
        node = row.node
        if selection.fits(capability=node.capability, reason=node.reason, agent_id=node.agent):
            found.append(row)
        if len(found) == most:
            break
    return found


def dead_row(row: DeadRow) -> dict[str, object]:
    """Return the node in the form of a dead letter; its id is what `dead redrive --node` takes."""
    node = row.node
    return {
        "id": f"{row.workflow}:{node.name}",
        "capability": node.capability,
        "priority": node.priority,
        "reason": node.reason,
        "agent": node.agent,
        "attempts": node.attempt,
        "dead_at": instant(node.finished_at_ms),
        "error": node.message[:200] or None,
    }


def redrive_node(
    opened: Connections, target: str, body: str | None, *, dry_run: bool, yes: bool, output: Output
) -> None:
    """Run a node again, or with `dry_run` say which nodes would run again; an element of a map runs with its map.

    Raises:
        InputError: when the ledger refuses the redrive.
        NotFound: when the ledger has no such node.
    """
    workflow, _, named = target.partition(":")
    node, _, _ = named.partition("[")
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
