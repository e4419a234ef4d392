"""`coditect policy`: check an approval policy's file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coditect.cli.terminal.output import Output, OutputOption, TableView, render, say
from coditect.operations.coordination import approvals
from coditect.workflow.approvals.policy import ApprovalPolicy, ApprovalRule

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _policy() -> None:
    """Check the file by which approvals are given automatically, asked for, or refused."""


@app.command("check")
def check_policy(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A policy in YAML, or in JSON by its name.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Check an approval policy, and show its rules in order. A dispatcher reads it from CODITECT_APPROVAL_POLICY.

    \b
    Example: coditect policy check approvals.yaml
    """
    policy = approvals.check_policy(file)
    rows = [_document(rule) for rule in policy.rules]
    columns = ("rule", "action", "risk", "of", "conditions")
    cells = [(row["name"], row["action"], row["risk"], row["of"] or "both", row["conditions"]) for row in rows]
    render(output, rows, TableView(columns, cells, "The policy has no rules."))
    if output is Output.TABLE:
        say(_defaults(policy))


def _document(rule: ApprovalRule) -> dict[str, object]:
    conditions = [
        f"capability {' or '.join(rule.capability)}" if rule.capability else "",
        f"tags {', '.join(sorted(rule.tags))}" if rule.tags else "",
        f"cost above {rule.cost_above:g}" if rule.cost_above is not None else "",
        f"workflow {rule.workflow}" if rule.workflow != "*" else "",
        f"node {rule.node}" if rule.node != "*" else "",
        f"when {rule.when}" if rule.when else "",
    ]
    told = "; ".join(one for one in conditions if one) or "always"
    of = None if rule.of is None else rule.of.value
    return {"name": rule.name, "action": rule.action.value, "risk": rule.risk.value, "of": of, "conditions": told}


def _defaults(policy: ApprovalPolicy) -> str:
    told = f"No rule matches: a task is {_DONE[policy.default_task]}, an approval is {_DONE[policy.default_approval]}."
    if policy.learning is not None:
        told += f" Learned approval up to {policy.learning.ceiling} risk, from {policy.learning.threshold:.3g} on."
    return f"{told} Digest {policy.digest}."


_DONE = {"approve": "approved", "ask": "asked about", "refuse": "refused"}
