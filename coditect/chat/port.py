"""The interface of a language model: messages, tools, requests, answers, the budget of a conversation, errors.

The caller counts what a conversation uses, since an endpoint may not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from coditect.errors import Retryable, SetupError, TaskError


class ChatUnavailable(Retryable):
    """The error of an endpoint that cannot be reached, did not answer in time, broke off, or reports a temporary fault.

    Facts: `reason`, `status` where there was one, `retry_after_seconds` where the endpoint said it.
    """


class ChatBroken(Retryable):
    """The error of an answer that is too large, cut off, withheld, empty or broken; a new request may succeed."""


class ChatRefused(SetupError):
    """The error of a request that the endpoint refuses for good, such as for a wrong key, model or parameter."""


class BudgetSpent(TaskError):
    """The error of a conversation whose token or cost budget has no room for a request, or for the rest of an answer.

    Facts: `tokens`, `cost` (used so far), `most_tokens`, `most_cost`, `fix`.
    """


BYTES_PER_TOKEN = 4
"""The usual number of bytes of a token, by which tokens are estimated that an endpoint does not count."""
MOST_BYTES_PER_TOKEN = 16
"""The most bytes that one token may have: a smaller count by the endpoint is not believed."""


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """The numbers of input and output tokens of one answer or several."""

    input: int = 0
    output: int = 0

    @property
    def total(self) -> int:
        """The number of input and output tokens together, which a budget counts."""
        return self.input + self.output

    def __add__(self, other: TokenUsage) -> TokenUsage:
        return TokenUsage(self.input + other.input, self.output + other.output)


@dataclass(frozen=True, slots=True)
class Prices:
    """The cost of a million tokens of input and of output, in the currency of the budget."""

    input: float = 0.0
    output: float = 0.0

    def cost(self, usage: TokenUsage) -> float:
        """Return the cost of a number of input and output tokens."""
        return (usage.input * self.input + usage.output * self.output) / 1_000_000


class ChatBudget:
    """The token and cost budget of one conversation: checked before each request, charged for each answer that began.

    A request begins only when its estimated input fits, and its answer is limited to what is left. Not for use by
    several requests at once.
    """

    def __init__(self, most_tokens: int, *, most_cost: float | None = None) -> None:
        """Limit the tokens of input and output together and, if a limit is given, the cost; unknown prices are 0."""
        self.most_tokens = most_tokens
        self.most_cost = most_cost
        self.used = TokenUsage()
        self.cost = 0.0

    def answer_tokens(self, request_bytes: int, prices: Prices) -> int:
        """Return how many tokens, at least 1, the budget leaves for the answer to a request of so many bytes; or raise.

        Raises:
            BudgetSpent: when the budget has no room for the request and an answer.
        """
        asked = TokenUsage(input=request_bytes // BYTES_PER_TOKEN)
        left = self.most_tokens - self.used.total - asked.total
        if self.most_cost is not None:
            money = self.most_cost - self.cost - prices.cost(asked)
            if money <= 0:
                left = 0
            elif prices.output > 0:
                left = min(left, int(money * 1_000_000 / prices.output))
        if left < 1:
            raise self.spent()
        return left

    def count(self, usage: TokenUsage, prices: Prices) -> None:
        """Add the tokens and the cost of an answer, complete or broken off, to what is used."""
        self.used += usage
        self.cost += prices.cost(usage)

    def spent(self) -> BudgetSpent:
        """Return the error of a request or answer that exceeds the budget, with what is used so far and the limits."""
        return BudgetSpent(
            "The conversation has used up its budget",
            tokens=self.used.total,
            most_tokens=self.most_tokens,
            cost=round(self.cost, 6),
            most_cost=self.most_cost,
            fix="allow more tokens or cost, or ask for less",
        )


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
