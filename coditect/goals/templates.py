"""The planner without a model: templates in a YAML file, matched to a goal's words and to what agents offer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coditect.errors import InputError
from coditect.goals.plan import PlanBounds
from coditect.workflow.definition import Definition
from coditect.workflow.documents.file import parse_document

MOST_BYTES = 1_000_000
_WORD = re.compile(r"\w+")


class GoalTemplate(BaseModel):
    """A ready plan for the goals whose text has certain words."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str = Field(min_length=1, max_length=100)
    when: tuple[str, ...] = Field(min_length=1, max_length=20)
    """The words that a goal must have, all of them, in any order and case."""
    nodes: dict[str, Any] = Field(min_length=1)
    """The nodes of the plan, as in a workflow; of a list under `task` the first that an agent offers is taken."""

    def fits(self, goal: str) -> bool:
        """Tell whether a goal has all words of the template."""
        return {word.casefold() for word in self.when} <= set(_WORD.findall(goal.casefold()))

    def document(self, offers: Mapping[str, object]) -> dict[str, Any]:
        """Return the plan with one capability for each task: the first in its list that is offered, else the first."""
        return {"nodes": {name: _chosen(node, offers) for name, node in self.nodes.items()}}


class _TemplateFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    goals: tuple[GoalTemplate, ...] = Field(min_length=1, max_length=200)


def read_templates(content: bytes, *, name: str = "") -> tuple[GoalTemplate, ...]:
    """Read and check the templates in the bytes of a YAML file; `name` is told in errors.

    Raises:
        InputError: when they are no templates, with every problem.
        InvalidWorkflow: when the bytes are no YAML, with the line.
    """
    if len(content) > MOST_BYTES:
        raise InputError("A file of goals is at most so large", path=name, most_bytes=MOST_BYTES)
    try:
        return _TemplateFile.model_validate(parse_document(content)).goals
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:10]]
        fix = "goals: [{name: ..., when: [WORD], nodes: {...}}]"
        raise InputError("These are no templates of goals", path=name, problems=problems, fix=fix) from error


class TemplatePlanner:
    """A planner that takes the template with the most words among those that fit, and after a failure the next one."""

    def __init__(self, templates: Sequence[GoalTemplate]) -> None:
        self._templates = sorted(templates, key=lambda one: -len(one.when))

    async def plan(self, goal: str, bounds: PlanBounds, failures: tuple[str, ...] = ()) -> Definition:
        """Return the plan of a template that fits the goal and the bounds, after skipping one for each earlier failure.

        Raises:
            InputError: when none does, or each that does has failed; with the reasons of those that were refused.
        """
        plans, refused = list[Definition](), list[str]()
        for template in self._templates:
            if not template.fits(goal):
                continue
            try:
                plans.append(bounds.accept(template.document(bounds.offers)))
            except InputError as error:
                refused.append(f"{template.name}: {error}"[:500])
        if len(plans) <= len(failures):
            known = [f"{one.name}: {', '.join(one.when)}" for one in self._templates[:20]]
            fix = "use the words of a template, start its agents, or ask a model: --chat"
            raise InputError("There is no template left for this goal", refused=refused, templates=known, fix=fix)
        return plans[len(failures)]


def _chosen(node: Any, offers: Mapping[str, object]) -> Any:
    if not isinstance(node, dict) or not isinstance(node.get("task"), list) or not node["task"]:
        return node
    return node | {"task": next((one for one in node["task"] if one in offers), node["task"][0])}
