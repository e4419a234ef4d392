"""The interface of a language model, and the values that go through it: messages, tools, requests and answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from coditect.chat.budget import ChatBudget, TokenUsage


class ChatRole(Enum):
    """The role of a message's author in a conversation."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A model's request to call a tool: untrusted text, neither parsed nor checked."""

    id: str
    name: str
    arguments: str
    """The arguments as the model wrote them: JSON, or text that is no valid JSON."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """A message of a conversation with a model: its author's role, its text, its tool calls or the call it answers."""

    role: ChatRole
    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    """The calls of an assistant's message; the next messages answer each of them."""
    answers: str | None = None
    """The id of the call that a tool's message answers."""


@dataclass(frozen=True, slots=True)
class ChatTool:
    """A function that a model may ask to be called."""

    name: str
    """Letters, digits, `_` and `-`, at most 64."""
    description: str
    schema: Mapping[str, Any]
    """The JSON Schema of the arguments: that of an object."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A request to a language model: the conversation, callable tools, a wished answer schema, and the model."""

    messages: tuple[ChatMessage, ...]
    tools: tuple[ChatTool, ...] = ()
    schema: Mapping[str, Any] | None = None
    """A JSON Schema that the answer's text should fit; a wish only, so the answer must be checked."""
    model: str | None = None
    """The model; None takes that of the settings."""


@dataclass(frozen=True, slots=True)
class ChatAnswer:
    """A complete answer of a model: text, calls of tools, or both, and the number of tokens used."""

    text: str
    tool_calls: tuple[ToolCall, ...]
    usage: TokenUsage


def discard(_text: str) -> None:
    """Ignore a piece of an answer's text: the default for `on_text`."""


class ChatModel(Protocol):
    """The interface of a language model, which answers a request within a token and cost budget."""

    async def ask(
        self, request: ChatRequest, budget: ChatBudget, *, on_text: Callable[[str], None] = discard
    ) -> ChatAnswer:
        """Send a request and return the complete answer; `on_text` gets the text in pieces, as it comes.

        The budget is charged for every answer, also for one that broke off. Nothing is tried again.

        Raises:
            BudgetSpent: when the budget does not allow the request, or the answer is longer than it allows.
            ChatUnavailable: when no answer came in time, or the endpoint is overloaded; retryable.
            ChatBroken: when the answer is none, was cut off at its limit, or withheld by a filter; retryable.
            ChatRefused: when the endpoint refuses key, model or request.
        """
