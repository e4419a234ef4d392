"""The check of a plan that a stranger wrote, be it a model or an agent: it becomes a workflow, or it is refused.

A plan has nodes of tasks and maps, and nothing else: no approval that could mislead a person, no child, no wait, and
none of the workflow's own fields. Every capability must be one that the goal may use, also for compensation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from coditect.errors import InputError, InvalidWorkflow
from coditect.model.capability import CapabilitySpec
from coditect.model.lesson import Lesson
from coditect.workflow.definition import Call, Definition, Each, Node
from coditect.workflow.documents.file import parse_document
from coditect.workflow.documents.reader import from_document
from coditect.workflow.expressions import check_expressions
from coditect.workflow.graph import graph_of
from coditect.workflow.template import template_expressions

GOAL = "goal.pursue"
"""The capability that pursues a goal."""
MAX_GOAL_DEPTH = 2
"""How deep goals within goals may be: a goal, one within it, and one within that."""
MOST_LISTS = 2 * (MAX_GOAL_DEPTH + 1)
"""How many lists of patterns a goal passes on: its request's and its agent's, and those of the goals around it."""
MOST_ATTEMPTS = 300
MAX_GOAL_TOKENS = 50_000
_CONFIG = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class GoalShare(BaseModel):
    """The bounds of one goal, which its own goals divide among themselves."""

    model_config = _CONFIG

    depth: int = Field(0, ge=0, le=1_000)
    """The number of goals around this one."""
    patterns: tuple[tuple[str, ...], ...] = Field((), max_length=MOST_LISTS)
    """Lists of patterns of capabilities; a plan may use what fits each of the lists."""
    attempts: int = Field(MOST_ATTEMPTS, ge=1, le=MOST_ATTEMPTS)
    """How many attempts all tasks of one plan may have together."""
    tokens: int = Field(MAX_GOAL_TOKENS, ge=0)
    """How many tokens of a model its own plans may use, in and out; goals in its plans share as many again."""

    def allows(self, capability: str) -> bool:
        """Tell whether a plan may use a capability; `goal.pursue` only while goals may be nested one level deeper."""
        if capability == GOAL and self.depth >= MAX_GOAL_DEPTH:
            return False
        return all(any(fnmatchcase(capability, pattern) for pattern in patterns) for patterns in self.patterns)

    def divided(self, plan: Definition, *, ordered: int, runs_of: Callable[[Node], int], most_plans: int) -> Definition:
        """Return the plan with bounds in each nested goal: an equal part of attempts and tokens for each of its runs.

        The attempts are those left after the `ordered` ones, of all tasks of the plan. A nested goal's attempts are no
        runs: each goes on with the same workflows.

        Raises:
            InputError: when a goal in the plan has other fields than `goal`, undoes a node, or has no part left.
        """
        goals = [node for node in plan.nodes if node.title == GOAL]
        if any(node.compensate == GOAL for node in plan.nodes):
            raise InputError("A goal does not undo a node", fix="name another capability in `compensate`")
        if not goals:
            return plan
        runs = sum(map(runs_of, goals)) * most_plans
        left = self.attempts - ordered
        if left < runs:
            fix = "plan fewer goals, smaller maps, fewer repeats"
            raise InputError("A plan orders too much work", most_attempts=self.attempts, goals=len(goals), fix=fix)
        part = GoalShare(
            depth=self.depth + 1,
            patterns=self.patterns,
            attempts=left // runs,
            tokens=self.tokens // runs,
        )
        return replace(plan, nodes=tuple(_within(node, part) if node.title == GOAL else node for node in plan.nodes))


WHOLE = GoalShare()
"""The bounds of a goal that is in no other one."""


class GoalRequest(BaseModel):
    """A request to pursue a goal."""

    model_config = _CONFIG

    goal: str = Field(min_length=1, max_length=10_000)
    """What is wanted, in one sentence."""
    capabilities: tuple[str, ...] = Field(("*",), min_length=1, max_length=100)
    """The capabilities that plans may use, such as `code.*`."""
    within: GoalShare = WHOLE
    """The bounds; a goal in a plan gets them from the goal around it."""

    def share(self, allowed: tuple[str, ...], tokens: int) -> GoalShare:
        """Return the goal's bounds: those of the request, narrowed by the agent's capability patterns and tokens.

        Raises:
            InputError: when the request names more bounds than a goal around it could have.
        """
        patterns = dict.fromkeys([*self.within.patterns, self.capabilities, allowed])
        kept = tuple(listed for listed in patterns if listed != ("*",))
        if len(kept) > MOST_LISTS:
            raise InputError("A goal has too many lists of patterns", most=MOST_LISTS, fix="leave `within` out")
        return self.within.model_copy(update={"patterns": kept, "tokens": min(tokens, self.within.tokens)})


def _within(node: Node, part: GoalShare) -> Node:
    goal_input = node.input
    if not isinstance(goal_input, dict) or set(goal_input) != {"goal"}:
        fix = 'its input is {"goal": ...} and nothing else'
        raise InputError("A goal in a plan has only its sentence", node=node.name, fix=fix)
    call = node.call
    assert call is not None  # plans have tasks and maps only
    bounded: Call = replace(call, input={"goal": goal_input["goal"], "within": part.model_dump(mode="json")})
    work: Any = replace(node.work, call=bounded) if isinstance(node.work, Each) else bounded
    return replace(node, work=work)


MAX_PLAN_BYTES = 1_000_000
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
    lessons: Mapping[str, Sequence[Lesson]] = field(default_factory=dict)
    """What was learned about the capabilities, by their names."""

    def read(self, text: str) -> Definition:
        """Parse a plan in JSON, check it as a workflow and by the goal's bounds, and return the workflow; run nothing.

        Raises:
            InputError: with every reason why it is refused; not retryable, but a planner may be told and asked again.
        """
        content = text.encode(errors="replace")
        if len(content) > MAX_PLAN_BYTES:
            raise InputError("A plan is too large", most_bytes=MAX_PLAN_BYTES, fix="plan fewer steps")
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
        limit = self.share.attempts
        if attempts > limit:
            fix = "plan smaller maps, fewer repeats and fewer retries"
            raise InputError("A plan orders too much work", most_attempts=limit, given=attempts, fix=fix)
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
