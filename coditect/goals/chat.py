"""The planner that asks a language model, tells it why a plan was refused, and gives up after a few repairs."""

from __future__ import annotations

from coditect.chat.budget import ChatBudget
from coditect.chat.port import ChatMessage, ChatModel, ChatRequest, ChatRole
from coditect.errors import InputError
from coditect.goals.plan import PlanBounds
from coditect.wire.json import dumps
from coditect.workflow.definition import Definition

MOST_REPAIRS = 2
_ORDER = """Plan a workflow for the user's goal. Answer one JSON object and nothing else: {"nodes": {NAME: NODE}}.
NODE is {"task": CAPABILITY, "input": JSON, "after": [NAME]}; a NAME is letters, digits and _.
In an input, {"$from": EXPRESSION} is a JMESPath expression over `input.goal` and `results.NAME` of nodes in `after`.
Use only the capabilities of this list, with inputs that fit their schemas:
"""


class ChatPlanner:
    """A planner that asks a language model, within the budget of one conversation."""

    def __init__(self, model: ChatModel, budget: ChatBudget, *, most_repairs: int = MOST_REPAIRS) -> None:
        self._model = model
        self._budget = budget
        self._most_repairs = most_repairs

    async def plan(self, goal: str, bounds: PlanBounds, failures: tuple[str, ...] = ()) -> Definition:
        """Return the model's first plan that the goal's bounds allow; tell it why others are refused, a few times.

        Raises:
            InputError: when none was allowed, with the reasons of the last one.
            BudgetSpent: when the budget is used up, however far the conversation got.
            CoditectError: the others of `ChatModel.ask`.
        """
        offered = [
            {"capability": one.name, "description": one.description, "schema": one.input_schema}
            for one in bounds.offers.values()
        ]
        told = "".join(f"\nAn earlier plan failed: {one[:500]}" for one in failures)
        messages = [
            ChatMessage(ChatRole.SYSTEM, _ORDER + dumps(offered).decode()),
            ChatMessage(ChatRole.USER, goal + told),
        ]
        for _ in range(self._most_repairs):
            answer = await self._model.ask(ChatRequest(tuple(messages)), self._budget)
            try:
                return bounds.read(answer.text)
            except InputError as error:
                messages.append(ChatMessage(ChatRole.ASSISTANT, answer.text))
                messages.append(ChatMessage(ChatRole.USER, f"The plan is refused: {str(error)[:1_000]}"))
        return bounds.read((await self._model.ask(ChatRequest(tuple(messages)), self._budget)).text)
