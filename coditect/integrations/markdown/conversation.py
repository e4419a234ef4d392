"""The conversation about one task with a language model: ask it and call the tools it wants, until it answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coditect.chat.budget import ChatBudget
from coditect.chat.port import ChatMessage, ChatModel, ChatRequest, ChatRole, ChatTool, ToolCall
from coditect.errors import CoditectError, InputError
from coditect.integrations.json_schema import SchemaCheck
from coditect.integrations.markdown.file import tool_name
from coditect.integrations.tools import INPUT, as_object, input_of
from coditect.model.capability import CapabilitySpec
from coditect.wire.json import dumps, loads

MOST_ROUNDS = 20
MOST_CALLS = 50
LONGEST_RESULT = 32_000
"""The most characters of a tool's result that the model gets."""

Request = Callable[[str, Any], Awaitable[Any]]
"""Requests a capability of the fleet with an input, and returns its value."""


@dataclass(frozen=True, slots=True)
class FleetTool:
    """A capability as a tool that a language model may call."""

    spec: CapabilitySpec

    @property
    def name(self) -> str:
        """The tool's name, as models are told it."""
        return tool_name(self.spec.name)

    @property
    def described(self) -> ChatTool:
        """The tool as a model sees it: its name, its description, and the schema of its arguments."""
        return ChatTool(self.name, self.spec.description[:1_000], as_object(self.spec.input_schema, INPUT))

    def input_of(self, arguments: str) -> Any:
        """Parse the arguments that a model wrote, check them by the tool's schema, and return the task's input.

        Raises:
            InvalidTask: when they are no JSON, or do not fit the schema.
        """
        given = loads(arguments.encode(errors="replace") or b"{}")
        SchemaCheck(as_object(self.spec.input_schema, INPUT)).check(given)
        return input_of(self.spec, given)


class Conversation:
    """The conversation with a language model about one task, bounded by tokens and by how often the model is called."""

    def __init__(
        self,
        model: ChatModel,
        budget: ChatBudget,
        tools: Mapping[str, FleetTool],
        request: Request,
        *,
        most_rounds: int = MOST_ROUNDS,
    ) -> None:
        """Take a model, its budget and the tools that it may call, by name; `request` runs a tool's capability."""
        self._model, self._budget, self._tools, self._request = model, budget, tools, request
        self._most_rounds = most_rounds
        self._called = 0

    async def answer(self, instructions: str, given: Any, *, model: str | None = None) -> str:
        """Give the model an input, call the tools that it asks for, and return its first answer that asks for none.

        Raises:
            InputError: when the model calls tools without end.
            BudgetSpent: when the budget is used up.
            CoditectError: the others of `ChatModel.ask`; some are retryable.
        """
        text = given if isinstance(given, str) else dumps(given).decode()
        messages = [ChatMessage(ChatRole.SYSTEM, instructions), ChatMessage(ChatRole.USER, text)]
        tools = tuple(tool.described for tool in self._tools.values())
        for _ in range(self._most_rounds):
            answer = await self._model.ask(ChatRequest(tuple(messages), tools, model=model), self._budget)
            if not answer.tool_calls:
                return answer.text
            messages.append(ChatMessage(ChatRole.ASSISTANT, answer.text, answer.tool_calls))
            for call in answer.tool_calls:
                messages.append(ChatMessage(ChatRole.TOOL, await self._call(call), answers=call.id))
        raise InputError("The model did not come to an answer", rounds=self._most_rounds, fix="narrow the task")

    async def _call(self, call: ToolCall) -> str:
        """Call a tool, and return the text that the model reads: the tool's answer, or why it was refused or failed."""
        self._called += 1
        tool = self._tools.get(call.name)
        if tool is None:
            return f"Refused: there is no tool {call.name[:100]!r}; there are {', '.join(self._tools) or 'none'}"
        if self._called > MOST_CALLS:
            return f"Refused: more than {MOST_CALLS} calls; answer with what you have"
        try:
            return dumps(await self._request(tool.spec.name, tool.input_of(call.arguments))).decode()[:LONGEST_RESULT]
        except CoditectError as error:
            return f"Failed: {str(error)[:2_000]}"
