"""The bounds of a goal; a goal nested in its plan gets only a part of them, so that nested goals always end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from coditect.errors import InputError
from coditect.workflow.definition import Call, Definition, Each, Node

GOAL = "goal.pursue"
"""The capability that pursues a goal."""
MOST_DEPTH = 2
"""How deep goals within goals may be: a goal, one within it, and one within that."""
MOST_LISTS = 2 * (MOST_DEPTH + 1)
"""How many lists of patterns a goal passes on: its request's and its agent's, and those of the goals around it."""
MOST_ATTEMPTS = 300
MOST_TOKENS = 50_000
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
    tokens: int = Field(MOST_TOKENS, ge=0)
    """How many tokens of a model its own plans may use, in and out; goals in its plans share as many again."""

    def allows(self, capability: str) -> bool:
        """Tell whether a plan may use a capability; `goal.pursue` only while goals may be nested one level deeper."""
        if capability == GOAL and self.depth >= MOST_DEPTH:
            return False
        return all(any(fnmatchcase(capability, one) for one in patterns) for patterns in self.patterns)

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
        kept = tuple(one for one in patterns if one != ("*",))
        if len(kept) > MOST_LISTS:
            raise InputError("A goal has too many lists of patterns", most=MOST_LISTS, fix="leave `within` out")
        return self.within.model_copy(update={"patterns": kept, "tokens": min(tokens, self.within.tokens)})


def _within(node: Node, part: GoalShare) -> Node:
    given = node.input
    if not isinstance(given, dict) or set(given) != {"goal"}:
        fix = 'its input is {"goal": ...} and nothing else'
        raise InputError("A goal in a plan has only its sentence", node=node.name, fix=fix)
    call = node.call
    assert call is not None  # plans have tasks and maps only
    bounded: Call = replace(call, input={"goal": given["goal"], "within": part.model_dump(mode="json")})
    work: Any = replace(node.work, call=bounded) if isinstance(node.work, Each) else bounded
    return replace(node, work=work)
