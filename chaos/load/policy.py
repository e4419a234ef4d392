"""The approval policy of a chaos run, and the names of the nodes that its rules decide about."""

from __future__ import annotations

from collections.abc import Mapping

from coditect.workflow.approvals.file import read_policy
from coditect.workflow.approvals.policy import ApprovalPolicy

POLICED = "policed"
"""The name of the workflow whose nodes the policy decides about."""
ALLOWED, ASKED, LEARNING, ROUTINE, FORBIDDEN = "allowed", "asked", "learning", "routine", "forbidden"
UNREACHED = "unreached"
"""The name of the node after the forbidden one, which is skipped."""
RULES = (ALLOWED, ASKED, LEARNING, ROUTINE, FORBIDDEN)
"""The rules, each of which is named after the node that it decides about."""
MEANT: Mapping[str, tuple[str, ...]] = {FORBIDDEN: ("rejected",), UNREACHED: ("skipped",)}
"""The states in which nodes of the workflow must end that do not complete."""
TEXT = f"""
rules:
  - {{name: {ALLOWED}, of: task, workflow: {POLICED}, node: {ALLOWED}, risk: medium, action: approve}}
  - {{name: {ASKED}, of: task, workflow: {POLICED}, node: {ASKED}, risk: high, action: ask}}
  - {{name: {LEARNING}, of: task, workflow: {POLICED}, node: {LEARNING}, risk: medium, action: ask, learn: true}}
  - {{name: {ROUTINE}, of: approval, workflow: {POLICED}, node: {ROUTINE}, risk: low, action: approve}}
  - {{name: {FORBIDDEN}, of: task, workflow: {POLICED}, node: {FORBIDDEN}, risk: high, action: refuse}}
learning: {{threshold: 0.6, window: 20, recovery: 3, ceiling: medium}}
"""


def chaos_policy() -> ApprovalPolicy:
    """Return the approval policy of a chaos run."""
    return read_policy(TEXT.encode())
