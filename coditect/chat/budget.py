"""The budget of a conversation with a language model, counted by the caller, since an endpoint may not count."""

from __future__ import annotations

from dataclasses import dataclass

from coditect.chat.failures import BudgetSpent

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
