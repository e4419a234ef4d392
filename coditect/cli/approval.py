"""`coditect approval`: answer what workflows ask people, check the policy, and see what needed a person."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from coditect.cli.connections import ask, complete_approval, connections, listed
from coditect.cli.terminal.options import ByOption, LimitOption, ShownAnswer, checked, presented
from coditect.cli.terminal.output import (
    Aside,
    FieldsView,
    Output,
    OutputOption,
    TableView,
    instant,
    json_text,
    render,
    say,
)
from coditect.client.approvals import AuditFilter, AuditRow, FinishedCounts, NeededPerson
from coditect.errors import InputError
from coditect.model.duration import seconds
from coditect.operations.connections import Connections
from coditect.workflow.approvals.file import load_policy
from coditect.workflow.approvals.policy import ApprovalPolicy, ApprovalRule
from coditect.workflow.fields import instant_ms

app = typer.Typer(no_args_is_help=True)


@app.command("policy")
def check_policy(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A policy in YAML, or in JSON by its name.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Check an approval policy, and show its rules in order. A dispatcher reads it from CODITECT_APPROVAL_POLICY.

    \b
    Example: coditect approval policy approvals.yaml
    """
    policy = load_policy(file)
    rows = [_policy_document(rule) for rule in policy.rules]
    columns = ("rule", "action", "risk", "of", "conditions")
    cells = [(row["name"], row["action"], row["risk"], row["of"] or "both", row["conditions"]) for row in rows]
    render(output, rows, TableView(columns, cells, "The policy has no rules."))
    if output is Output.TABLE:
        say(_defaults(policy))


def _policy_document(rule: ApprovalRule) -> dict[str, object]:
    conditions = [
        f"capability {' or '.join(rule.capability)}" if rule.capability else "",
        f"tags {', '.join(sorted(rule.tags))}" if rule.tags else "",
        f"cost above {rule.cost_above:g}" if rule.cost_above is not None else "",
        f"workflow {rule.workflow}" if rule.workflow != "*" else "",
        f"node {rule.node}" if rule.node != "*" else "",
        f"when {rule.when}" if rule.when else "",
    ]
    described = "; ".join(filter(None, conditions)) or "always"
    facts = {"name": rule.name, "action": rule.action.value, "risk": rule.risk.value}
    return facts | {"of": None if rule.of is None else rule.of.value, "conditions": described}


def _defaults(policy: ApprovalPolicy) -> str:
    task, approval = _DONE[policy.default_task], _DONE[policy.default_approval]
    sentence = f"No rule matches: a task is {task}, an approval is {approval}."
    if policy.learning is not None:
        sentence += f" Learned approval up to {policy.learning.ceiling} risk, from {policy.learning.threshold:.3g} on."
    return f"{sentence} Digest {policy.digest}."


_DONE = {"approve": "approved", "ask": "asked about", "refuse": "refused"}


class Author(StrEnum):
    """The choice of `approval audit`: only decisions of people, or only automatic ones."""

    PEOPLE = "people"
    AUTOMATIC = "automatic"


@app.command("audit")
@presented
async def list_audit(
    context: typer.Context,
    workflow: Annotated[str | None, typer.Option(metavar="RUN", help="Of one workflow.")] = None,
    node: Annotated[str | None, typer.Option(help="Of one node of the workflow.")] = None,
    since: Annotated[str | None, typer.Option(help="From this instant on, with its offset from UTC.")] = None,
    until: Annotated[str | None, typer.Option(help="Before this instant.")] = None,
    last: Annotated[str | None, typer.Option(callback=checked, help="The period up to now, such as 7d.")] = None,
    decision: Annotated[str | None, typer.Option(help="asked, granted, denied, refused, ...")] = None,
    by: Annotated[str | None, typer.Option(help="Of one person, or of policy, learned or timeout.")] = None,
    capability: Annotated[str | None, typer.Option(help="About tasks of one capability.")] = None,
    only: Annotated[Author | None, typer.Option(help="Only decisions of people, or automatic ones.")] = None,
    autonomy: Annotated[
        bool, typer.Option("--autonomy", help="Show which share of workflows and tasks finished without a person.")
    ] = False,
    limit: LimitOption = 100,
) -> ShownAnswer:
    """List the audit trail, the latest entry first; of one workflow at most its latest 500, the earliest first.

    With --autonomy, count what finished in whole hours, of the last day unless --last, --since or --until say more, and
    show what needed a person and why. Direct tasks are not counted: nothing is kept of them.

    \b
    Example: coditect approval audit --only people --since 2026-01-01T00:00:00Z
             coditect approval audit --autonomy --last 7d
    """
    opened, now_ms = connections(context), time.time_ns() // 1_000_000
    since_ms = None if since is None else instant_ms(since)
    if last is not None or (autonomy and since is None):
        since_ms = now_ms - round(1000 * seconds(last or "1d"))
    until_ms = None if until is None else instant_ms(until)
    automatic = None if only is None else only is Author.AUTOMATIC
    others = (workflow, node, decision, by, automatic, capability)
    if (autonomy and others != (None,) * len(others)) or (last is not None and since is not None):
        raise InputError("Some of these options exclude each other", fix="--autonomy with a period; --since or --last")
    conditions = AuditFilter(workflow, node, since_ms, until_ms, decision, by, automatic, capability)
    if autonomy:
        return await _autonomy(opened, since_ms or 0, until_ms or now_ms)
    rows = await listed(opened, lambda client: client.approvals.audit(limit=limit, **conditions.asked()))
    return ShownAnswer(rows, (_audit_table(rows, "The audit trail has no such entry."),))


def _audit_table(rows: Sequence[AuditRow], empty: str) -> TableView:
    columns = ("at", "decision", "by", "risk", "rule", "workflow", "node", "why")
    cells = [
        (instant(row.at_ms), row.decision, row.by, row.risk, row.rule, row.workflow, row.node, row.why) for row in rows
    ]
    return TableView(columns, cells, empty)


async def _autonomy(opened: Connections, since_ms: int, until_ms: int) -> ShownAnswer:
    async with opened.fleet() as client:
        found = await client.approvals.autonomy(since_ms=since_ms, until_ms=until_ms)
    document = asdict(found)
    document["workflows"]["autonomy"] = found.workflows.autonomy
    for name, counts in found.capabilities.items():
        document["capabilities"][name]["autonomy"] = counts.autonomy
    rates = _rates([("all workflows", found.workflows), *found.capabilities.items()])
    cut = () if found.needed_is_whole else (Aside("What needed a person is of the latest 5,000 decisions only."),)
    return ShownAnswer(document, (rates, _needed(found.needed), *cut))


def _rates(rows: Sequence[tuple[str, FinishedCounts]]) -> TableView:
    columns = ("what", "autonomy", "finished", "completed", "by hand")
    cells = [
        (name, _percent(counts.autonomy), counts.finished, counts.completed, counts.by_hand) for name, counts in rows
    ]
    return TableView(columns, cells)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _needed(rows: Sequence[NeededPerson]) -> TableView:
    columns = ("needed a person", "times", "capability", "rule", "last at", "workflow", "node", "by", "why")
    cells = [
        (row.decision, row.count, row.capability, row.rule, instant(row.at_ms), row.workflow, row.node, row.by, row.why)
        for row in rows
    ]
    return TableView(columns, cells, "Nothing needed a person.")


MAX_ABOUT_CHARACTERS = 80
"""The most characters that `approval list` shows of what an approval is about."""

ApprovalArgument = Annotated[
    str,
    typer.Argument(metavar="ID", help="As `approval list` shows it: WORKFLOW:NODE.", autocompletion=complete_approval),
]
CommentOption = Annotated[str, typer.Option("--comment", help="Why; kept with the answer.")]


@app.command("list")
@presented
async def list_approvals(context: typer.Context, limit: LimitOption = 100) -> ShownAnswer:
    """List the approvals of running workflows that have no answer yet, each with what it is about.

    \b
    Example: coditect approval list
    """
    rows = await listed(connections(context), lambda client: client.approvals.list(limit=limit))
    columns = ("approval", "name", "question", "about", "since", "risk", "rule", "due")
    cells = [
        (
            row.id,
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
    document = [{"id": row.id} | asdict(row) for row in rows]
    return ShownAnswer(document, (TableView(columns, cells, "No approval is open."),))


@app.command("get")
def get_approval(context: typer.Context, approval: ApprovalArgument, output: OutputOption = Output.TABLE) -> None:
    """Show what was asked and decided about a node: about which values, by which rule and whom, when and why.

    Where the rule learns, the arithmetic of learned approval is shown as it was when the decision was made.

    \b
    Example: coditect approval get 01890a5d-ac96-774b-bcce-b302099a8057:ship_it
    """
    found = ask(context, lambda client: client.approvals.get(approval))
    decision = found.decision
    facts: Mapping[str, Any] = decision.get("facts") or {}
    shown = {
        "decision": f"{decision.get('decision')} by {decision.get('by') or 'the policy, which asks a person'}",
        "rule": f"{decision.get('rule') or 'none'}, risk {decision.get('risk') or 'not judged'}",
        **{name: decision.get(name) for name in ("why", "capability", "policy", "question")},
        "due": instant(decision.get("due_ms")),
        "arithmetic": "\n".join(facts.get("arithmetic", ())),
        **{name.replace("_", " "): json_text(value) for name, value in found.about.items() if value},
    }
    render(output, [found], FieldsView(shown), _audit_table(found.history, "The audit trail has no entry of it."))


@app.command("grant")
def grant_approval(
    context: typer.Context, approval: ApprovalArgument, by: ByOption = "", comment: CommentOption = ""
) -> None:
    """Grant an approval, so that its workflow goes on. Only the first answer to an approval counts.

    \b
    Example: coditect approval grant 01890a5d-ac96-774b-bcce-b302099a8057:ship_it --comment "reviewed"
    """
    _answer(context, approval, granted=True, by=by, comment=comment)


@app.command("deny")
def deny_approval(
    context: typer.Context, approval: ApprovalArgument, by: ByOption = "", comment: CommentOption = ""
) -> None:
    """Deny an approval, so that its node ends as rejected. Only the first answer to an approval counts.

    \b
    Example: coditect approval deny 01890a5d-ac96-774b-bcce-b302099a8057:ship_it --comment "not yet"
    """
    _answer(context, approval, granted=False, by=by, comment=comment)


def _in_short(about: Mapping[str, Any]) -> str:
    """Return the values that an approval is about as one short line."""
    text = ", ".join(
        f"{name.replace('_', ' ')} {json.dumps(value, ensure_ascii=False)}" for name, value in about.items() if value
    )
    return text if len(text) <= MAX_ABOUT_CHARACTERS else f"{text[:MAX_ABOUT_CHARACTERS]}…"


def _answer(context: typer.Context, approval: str, *, granted: bool, by: str | None, comment: str) -> None:
    key = connections(context).environ.get("CODITECT_APPROVAL_KEY") or None
    answer: dict[str, Any] = {"by": by, "comment": comment, "key": key}
    if granted:
        ask(context, lambda client: client.approvals.grant(approval, **answer))
    else:
        ask(context, lambda client: client.approvals.deny(approval, **answer))
    say(f"{approval} was {'granted' if granted else 'denied'} by {answer['by']}.")
