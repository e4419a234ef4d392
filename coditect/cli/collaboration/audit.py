"""`coditect audit`: list what people and policies decided."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated

import typer

from coditect.cli.connections import connections
from coditect.cli.terminal.output import Output, OutputOption, TableView, instant
from coditect.cli.terminal.watch import ShownAnswer, WatchOption, present
from coditect.client.coordination.audit import AuditRow
from coditect.operations.coordination import approvals
from coditect.operations.coordination.approvals import AuditFilter
from coditect.workflow.fields import instant_ms

app = typer.Typer(no_args_is_help=True)


class Author(StrEnum):
    """The choice of `audit list`: only decisions of people, or only automatic ones."""

    PEOPLE = "people"
    AUTOMATIC = "automatic"


@app.callback()
def _audit() -> None:
    """See every decision about tasks and approvals, of people and automatic, with who, when and why."""


@app.command("list")
def list_audit(
    context: typer.Context,
    workflow: Annotated[str | None, typer.Option("--workflow", metavar="RUN", help="Of one workflow.")] = None,
    node: Annotated[str | None, typer.Option("--node", help="Of one node of the workflow.")] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="From this instant on, with its offset from UTC.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="Before this instant.")] = None,
    decision: Annotated[str | None, typer.Option("--decision", help="asked, granted, denied, refused, ...")] = None,
    by: Annotated[str | None, typer.Option("--by", help="Of one person, or of policy, learned or timeout.")] = None,
    capability: Annotated[str | None, typer.Option("--capability", help="About tasks of one capability.")] = None,
    only: Annotated[Author | None, typer.Option("--only", help="Only decisions of people, or automatic ones.")] = None,
    most: Annotated[int, typer.Option("--most", min=1, max=100_000, help="At most so many.")] = 100,
    output: OutputOption = Output.TABLE,
    watch: WatchOption = False,
) -> None:
    """List the audit trail, the latest entry first; of one workflow at most its latest 500, the earliest first.

    \b
    Example: coditect audit list --only people --since 2026-01-01T00:00:00Z
    """
    conditions = AuditFilter(
        workflow,
        node,
        None if since is None else instant_ms(since),
        None if until is None else instant_ms(until),
        decision,
        by,
        None if only is None else only is Author.AUTOMATIC,
        capability,
    )
    opened = connections(context)

    async def look() -> ShownAnswer:
        rows = await approvals.list_audit(opened, conditions, most=most)
        return ShownAnswer(rows, (audit_table(rows, "The audit trail has no such entry."),))

    present(look, output, watch=watch)


def audit_table(rows: Sequence[AuditRow], empty: str) -> TableView:
    """Return the entries of the audit trail as a table."""
    columns = ("at", "decision", "by", "risk", "rule", "workflow", "node", "why")
    cells = [
        (instant(row.at_ms), row.decision, row.by, row.risk, row.rule, row.workflow, row.node, row.why) for row in rows
    ]
    return TableView(columns, cells, empty)
