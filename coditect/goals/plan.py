"""The check of a plan that a stranger wrote, be it a model or an agent: it becomes a workflow, or it is refused.

A plan has nodes of tasks and maps, and nothing else: no approval that could mislead a person, no child, no wait, and
none of the workflow's own fields. Every capability must be one that the goal may use, also for compensation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coditect.errors import InputError, InvalidWorkflow
from coditect.goals.share import WHOLE, GoalShare
from coditect.model.capability import CapabilitySpec
from coditect.workflow.definition import Definition, Each, Node
from coditect.workflow.documents.file import parse_document
from coditect.workflow.documents.reader import from_document
from coditect.workflow.expressions import check_expressions
from coditect.workflow.graph import graph_of
from coditect.workflow.template import template_expressions

MOST_BYTES = 1_000_000
"""The largest plan."""
PLAN_NAME = "goal"
MOST_PLANS = 3
"""How many plans a goal tries."""
SchemaChecking = Callable[[CapabilitySpec, Any], None]
"""Checks an input by a capability's JSON Schema; raises InputError for one that does not fit."""
_ATTEMPTS = 3
"""The number of attempts that a task counts where the plan names no retry policy."""


@dataclass(frozen=True, slots=True)
class PlanBounds:
    """The bounds of a goal: the capabilities that its plans may use, and how much work one plan may order."""

    offers: Mapping[str, CapabilitySpec]
    """The capabilities by their names."""
    check: SchemaChecking
    most_nodes: int = 30
    share: GoalShare = WHOLE
    """The goal's bounds; `attempts` counts elements of maps, repeats and retries."""

    def read(self, text: str) -> Definition:
        """Parse a plan in JSON, check it as a workflow and by the goal's bounds, and return the workflow; run nothing.

        Raises:
            InputError: with every reason why it is refused; not retryable, but a planner may be told and asked again.
        """
        content = text.encode(errors="replace")
        if len(content) > MOST_BYTES:
            raise InputError("A plan is too large", most_bytes=MOST_BYTES, fix="plan fewer steps")
        return self.accept(parse_document(content, is_json=True))

    def accept(self, document: object) -> Definition:
        """Check a parsed plan as a workflow and by the goal's bounds, and return the workflow; raise as `read` does."""
        if not isinstance(document, dict) or set(document) != {"nodes"} or not isinstance(document["nodes"], dict):
            raise InputError("A plan is an object with `nodes` and nothing else", fix='answer {"nodes": {...}}')
        nodes = document["nodes"]
        if len(nodes) > self.most_nodes:
            raise InputError("A plan has too many nodes", most=self.most_nodes, given=len(nodes), fix="plan fewer")
        for name, node in nodes.items():
            if not isinstance(node, dict) or not ("task" in node or "map" in node):
                raise InputError("A plan has only tasks and maps", node=str(name)[:100], fix="use `task` or `map`")
            if "priority" in node:
                raise InputError("A plan sets no priorities", node=str(name)[:100], fix="leave `priority` out")
        definition = from_document({"name": PLAN_NAME, "nodes": nodes})
        graph_of(definition)
        if problems := check_expressions(definition):
            raise InvalidWorkflow.of(problems)
        ordered = self._checked_work(definition)
        definition = self.share.divided(definition, ordered=ordered, runs_of=_runs, most_plans=MOST_PLANS)
        self._check_capabilities(definition)
        return definition

    def _check_capabilities(self, definition: Definition) -> None:
        for node in definition.nodes:
            for capability in filter(None, (node.title, node.compensate)):
                if capability not in self.offers:
                    fix = f"use one of {', '.join(sorted(self.offers)[:20])}"
                    raise InputError("The goal may not use this capability", node=node.name, given=capability, fix=fix)
            if not any(template_expressions(node.input)):
                try:
                    self.check(self.offers[node.title], node.input if node.input is not None else {})
                except InputError as error:
                    fix = "follow the capability's schema"
                    raise InputError("An input does not fit", node=node.name, why=str(error)[:500], fix=fix) from error

    def _checked_work(self, definition: Definition) -> int:
        attempts = sum(map(_attempts, definition.nodes))
        most = self.share.attempts
        if attempts > most:
            fix = "plan smaller maps, fewer repeats and fewer retries"
            raise InputError("A plan orders too much work", most_attempts=most, given=attempts, fix=fix)
        return attempts


def _attempts(node: Node) -> int:
    call = node.call
    assert call is not None  # only tasks and maps come so far
    return _runs(node) * (call.retry.max_attempts if call.retry is not None else _ATTEMPTS)


def _runs(node: Node) -> int:
    """Return how often a node's task may run, retries not counted: the elements of a map, times the repeats."""
    call = node.call
    assert call is not None
    elements = node.work.limit if isinstance(node.work, Each) else 1
    return elements * (call.repeat.most if call.repeat is not None else 1)
