"""Retries of a call inside of a handler, by tenacity: with full jitter, under a budget, within the task's deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from tenacity import (
    AsyncRetrying,
    AttemptManager,
    RetryCallState,
    Retrying,
    retry_if_exception,
    wait_random_exponential,
)

from coditect.errors import CoditectError
from coditect.model.duration import seconds
from coditect.model.retry import Retry
from coditect.resilience.retry_budget import RetryBudget

DEFAULT_RETRIES = Retry(max_attempts=3, first="100ms", cap="5s")
"""The policy of retries inside of a handler, which holds its slot meanwhile: short, unlike that of a task."""
NO_BUDGET = "It was not tried again: the retry budget of this dependency is used up"
NO_TIME = "It was not tried again: the task's deadline comes first"


class Retries:
    """The tries of one call: `async for attempt in ctx.retry("github")`, then `with attempt:` around the call.

    A plain handler, which runs in a thread, writes `for` in place of `async for`.
    """

    def __init__(self, budget: RetryBudget, policy: Retry, left_seconds: Callable[[], float | None]) -> None:
        """Make the retries of one dependency, within its budget, by the policy and until the deadline."""
        self._budget, self._policy, self._left_seconds = budget, policy, left_seconds

    def __aiter__(self) -> AsyncIterator[AttemptManager]:
        self._budget.called()
        return AsyncRetrying(sleep=asyncio.sleep, **self._rules()).__aiter__()

    def __iter__(self) -> Iterator[AttemptManager]:
        self._budget.called()
        return iter(Retrying(**self._rules()))

    def _rules(self) -> dict[str, Any]:
        policy = self._policy
        return {
            "stop": self._was_the_last,
            "wait": wait_random_exponential(multiplier=seconds(policy.first), max=seconds(policy.cap)),
            "retry": retry_if_exception(lambda error: worth_a_retry(policy, error)),
            "reraise": True,
        }

    def _was_the_last(self, state: RetryCallState) -> bool:
        """Tell whether a failed try is the last one; the budget comes last, since its check takes a token."""
        tried = state.attempt_number >= self._policy.max_attempts
        return tried or self._out_of_time(state) or self._out_of_budget(state)

    def _out_of_time(self, state: RetryCallState) -> bool:
        left = self._left_seconds()
        return left is not None and state.upcoming_sleep >= left and _noted(state, NO_TIME)

    def _out_of_budget(self, state: RetryCallState) -> bool:
        """Tell whether the retry budget forbids another try; if not, spend one token of the budget on that try."""
        return not self._budget.take() and _noted(state, NO_BUDGET)


def worth_a_retry(policy: Retry, error: BaseException) -> bool:
    """Tell whether an error lets a call be tried again: the retry policy allows it, and it is no CoditectError.

    Another layer has retried those already, or will do so: `RetryAfter`, for example, asks for another attempt.
    """
    return not isinstance(error, CoditectError) and policy.allows(error)


def _noted(state: RetryCallState, why: str) -> bool:
    """Add a note to a call's last error, for the traceback, that says why the call is not tried again; return True."""
    error = None if state.outcome is None else state.outcome.exception()
    if error is not None:
        error.add_note(why)
    return True
