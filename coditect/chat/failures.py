"""The errors of calls to a language model, a class for each way in which the caller can deal with them."""

from __future__ import annotations

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
