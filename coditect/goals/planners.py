"""The planners, which make a checked workflow of a goal in words: by templates, or by a language model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coditect.chat.port import ChatBudget, ChatMessage, ChatModel, ChatRequest, ChatRole
from coditect.errors import InputError
from coditect.goals.plan import PlanBounds
from coditect.model.lesson import prompt_of
from coditect.wire.json import dumps
from coditect.workflow.definition import Definition
from coditect.workflow.documents.file import parse_document


class Planner(Protocol):
    """The port of a planner, which makes a checked workflow from a goal in words."""

    async def plan(self, goal: str, bounds: PlanBounds, failures: tuple[str, ...] = ()) -> Definition:
        """Return a workflow for a goal in words, checked by the goal's bounds; `failures` say why earlier ones failed.

        Raises:
            InputError: when there is no plan for the goal, or none that the bounds allow.
        """


MAX_TEMPLATE_BYTES = 1_000_000
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
    """Read and check the templates in the bytes of a YAML file, which errors call `name`.

    Raises:
        InputError: when they are no templates, with every problem.
        InvalidWorkflow: when the bytes are no YAML, with the line.
    """
    if len(content) > MAX_TEMPLATE_BYTES:
        raise InputError("A file of goals is at most so large", path=name, most_bytes=MAX_TEMPLATE_BYTES)
    try:
        return _TemplateFile.model_validate(parse_document(content)).goals
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()[:10]]
        fix = "goals: [{name: ..., when: [WORD], nodes: {...}}]"
        raise InputError("These are no templates of goals", path=name, problems=problems, fix=fix) from error


class TemplatePlanner:
    """A planner that takes the template with the most words among those that fit, and after a failure the next one."""

    def __init__(self, templates: Sequence[GoalTemplate]) -> None:
        self._templates = sorted(templates, key=lambda template: -len(template.when))

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
            known = [f"{template.name}: {', '.join(template.when)}" for template in self._templates[:20]]
            fix = "use the words of a template, start its agents, or ask a model: leave --templates out"
            raise InputError("There is no template left for this goal", refused=refused, templates=known, fix=fix)
        return plans[len(failures)]


def _chosen(node: Any, offers: Mapping[str, object]) -> Any:
    if not isinstance(node, dict) or not isinstance(node.get("task"), list) or not node["task"]:
        return node
    return node | {"task": next((capability for capability in node["task"] if capability in offers), node["task"][0])}


MOST_REPAIRS = 2
_ORDER = """Plan a workflow for the user's goal. Answer one JSON object and nothing else: {"nodes": {NAME: NODE}}.
NODE is {"task": CAPABILITY, "input": JSON, "after": [NAME]}; a NAME is letters, digits and _.
In an input, {"$from": EXPRESSION} is a JMESPath expression over `input.goal` and `results.NAME` of nodes in `after`.
Use only the capabilities of this list, with inputs that fit their schemas:
"""


class ChatPlanner:
    """A planner that asks a language model, within the budget of one conversation."""

    def __init__(self, model: ChatModel, budget: ChatBudget) -> None:
        self._model = model
        self._budget = budget

    async def plan(self, goal: str, bounds: PlanBounds, failures: tuple[str, ...] = ()) -> Definition:
        """Return the model's first plan that the goal's bounds allow; tell it why others are refused, a few times.

        Raises:
            InputError: when none was allowed, with the reasons of the last one.
            BudgetSpent: when the budget is used up, however far the conversation got.
            CoditectError: the others of `ChatModel.ask`.
        """
        offered = [
            {"capability": offer.name, "description": offer.description, "schema": offer.input_schema}
            for offer in bounds.offers.values()
        ]
        failed = "".join(f"\nAn earlier plan failed: {reason[:500]}" for reason in failures)
        messages = [
            ChatMessage(ChatRole.SYSTEM, _ORDER + dumps(offered).decode()),
            ChatMessage(ChatRole.USER, goal + failed),
        ]
        if learned := prompt_of(bounds.lessons):
            messages.insert(1, ChatMessage(ChatRole.USER, learned))
        for _ in range(MOST_REPAIRS):
            answer = await self._model.ask(ChatRequest(tuple(messages)), self._budget)
            try:
                return bounds.read(answer.text)
            except InputError as error:
                messages.append(ChatMessage(ChatRole.ASSISTANT, answer.text))
                messages.append(ChatMessage(ChatRole.USER, f"The plan is refused: {str(error)[:1_000]}"))
        return bounds.read((await self._model.ask(ChatRequest(tuple(messages)), self._budget)).text)
