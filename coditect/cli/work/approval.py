"""`coditect approval`: list the approvals that workflows wait for, and answer them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from coditect.aio.loop import run_loop
from coditect.cli.collaboration.audit import audit_table
from coditect.cli.connections import connections
from coditect.cli.observe.completion import complete_workflow
from coditect.cli.terminal.output import FieldsView, Output, OutputOption, TableView, instant, render, say
from coditect.cli.terminal.user import ByOption, user_name
from coditect.cli.terminal.watch import ShownAnswer, WatchOption, present
from coditect.operations.coordination import approvals
from coditect.operations.workflows import requests as workflows

app = typer.Typer(no_args_is_help=True)

MAX_ABOUT_CHARACTERS = 80
"""The most characters that `approval list` shows of what an approval is about."""

RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="The workflow's id, as `approval list` shows it.", autocompletion=complete_workflow
    ),
]
NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="The node that asks.")]
CommentOption = Annotated[str, typer.Option("--comment", help="Why; kept with the answer.")]


@app.command("list")
def list_approvals(
    context: typer.Context,
    most: Annotated[int, typer.Option("--most", min=1, max=100_000, help="At most so many.")] = 100,
    output: OutputOption = Output.TABLE,
    watch: WatchOption = False,
) -> None:
    """List the approvals of running workflows that have no answer yet, each with what it is about.

    \b
    Example: coditect approval list
    """
    opened = connections(context)

    async def look() -> ShownAnswer:
        rows = await workflows.list_approvals(opened, most=most)
        columns = ("workflow", "node", "name", "question", "about", "since", "risk", "rule", "due")
        cells = [
            (
                row.workflow,
                row.node,
                row.name,
                row.question,
                _in_short(row.about),
                instant(row.since_ms),
                row.risk,
                row.rule,
                instant(row.due_ms),
            )
            for row in rows
        ]
        return ShownAnswer(rows, (TableView(columns, cells, "No approval is open."),))

    present(look, output, watch=watch)


@app.command("show")
def show_approval(
    context: typer.Context, run: RunArgument, node: NodeArgument, output: OutputOption = Output.TABLE
) -> None:
    """Show what was asked and decided about a node: about which values, by which rule and whom, when and why.

    \b
    Example: coditect approval show 01890a5d-ac96-774b-bcce-b302099a8057 ship_it
    """
    found = run_loop(approvals.show_decision(connections(context), run, node))
    names = ("decision", "by", "why", "capability", "rule", "risk", "policy", "question")
    told = {name: found.decision.get(name) for name in names if found.decision.get(name)}
    due = {"due": instant(found.decision["due_ms"])} if found.decision.get("due_ms") else {}
    about = {name.replace("_", " "): _json(value, indent=2) for name, value in found.about.items() if value}
    render(
        output,
        [found],
        FieldsView(told | due | about),
        audit_table(found.history, "The audit trail has no entry of it."),
    )


@app.command("explain")
def explain_approval(
    context: typer.Context, run: RunArgument, node: NodeArgument, output: OutputOption = Output.TABLE
) -> None:
    """Explain the last decision about a node: the rule, and the arithmetic of learned approval where the rule learns.

    \b
    Example: coditect approval explain 01890a5d-ac96-774b-bcce-b302099a8057 ship_it
    """
    found = run_loop(approvals.show_decision(connections(context), run, node)).decision
    facts = found.get("facts") or {}
    told = {
        "decision": f"{found.get('decision')} by {found.get('by') or 'the policy, which asks a person'}",
        "rule": f"{found.get('rule') or 'none'}, risk {found.get('risk') or 'not judged'}",
        "why": found.get("why"),
        "policy": found.get("policy"),
        "arithmetic": "\n".join(facts.get("arithmetic", ())),
    }
    render(output, dict(found), FieldsView(told))


@app.command("grant")
def grant_approval(
    context: typer.Context, run: RunArgument, node: NodeArgument, by: ByOption = None, comment: CommentOption = ""
) -> None:
    """Grant an approval, so that its workflow goes on. Only the first answer to an approval counts.

    \b
    Example: coditect approval grant 01890a5d-ac96-774b-bcce-b302099a8057 ship_it --comment "reviewed"
    """
    _answer(context, run, node, granted=True, by=by, comment=comment)


@app.command("deny")
def deny_approval(
    context: typer.Context, run: RunArgument, node: NodeArgument, by: ByOption = None, comment: CommentOption = ""
) -> None:
    """Deny an approval, so that its node ends as rejected. Only the first answer to an approval counts.

    \b
    Example: coditect approval deny 01890a5d-ac96-774b-bcce-b302099a8057 ship_it --comment "not yet"
    """
    _answer(context, run, node, granted=False, by=by, comment=comment)


def _in_short(about: Mapping[str, Any]) -> str:
    """Return the values that an approval is about as one short line."""
    text = ", ".join(f"{name.replace('_', ' ')} {_json(value)}" for name, value in about.items() if value)
    return text if len(text) <= MAX_ABOUT_CHARACTERS else f"{text[:MAX_ABOUT_CHARACTERS]}…"


def _json(value: object, *, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _answer(context: typer.Context, run: str, node: str, *, granted: bool, by: str | None, comment: str) -> None:
    who = by or user_name()
    run_loop(workflows.answer_approval(connections(context), run, node, granted=granted, by=who, comment=comment))
    say(f"{node} of {run} was {'granted' if granted else 'denied'} by {who}.")
