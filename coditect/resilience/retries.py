"""Retries of a call inside of a handler, by tenacity: with full jitter, under a budget, within the task's deadline.

A retry helps against a failure that is rare. When most calls fail, retries only multiply the load, just when the
dependency can bear it least. So the calls of a process to one dependency share a budget: a token bucket, into which
each call puts a tenth of a token, and from which each retry takes a whole one. (Google, "Site Reliability
Engineering", chapter 22; Finagle's `RetryBudget`.)
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from coditect.errors import CoditectError
from coditect.model.duration import seconds
from coditect.model.result import ask_error
from coditect.model.retry import Retry

if TYPE_CHECKING:
    from tenacity import AttemptManager, RetryCallState

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
        return aiter(self._retrying("AsyncRetrying", sleep=asyncio.sleep))

    def __iter__(self) -> Iterator[AttemptManager]:
        return iter(self._retrying("Retrying"))

    def _retrying(self, kind: str, **own: Any) -> Any:
        """Count the call, and return tenacity's retrying of a kind, with its own arguments and this object's rules."""
        import tenacity  # noqa: PLC0415 - it loads slowly, and few handlers retry

        self._budget.called()
        policy = self._policy
        return getattr(tenacity, kind)(
            stop=self._was_the_last,
            wait=tenacity.wait_random_exponential(multiplier=seconds(policy.first), max=seconds(policy.cap)),
            retry=tenacity.retry_if_exception(lambda error: worth_a_retry(policy, error)),
            reraise=True,
            **own,
        )

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
    return not issubclass(type(error), CoditectError) and policy.allows(error)


def _noted(state: RetryCallState, why: str) -> bool:
    """Add a note to a call's last error, for the traceback, that says why the call is not tried again; return True.

    An error whose class refuses the note stays without it.
    """
    error = None if state.outcome is None else state.outcome.exception()
    if error is not None:
        ask_error(lambda: BaseException.add_note(error, why), otherwise=None)
    return True


RETRY_SHARE = 0.1
"""The number of retries that each call earns: retries are at most a tenth of all calls."""
MAX_SAVED_RETRIES = 10.0
"""The number of retries that may be saved up, and that a new budget lends: all retries of the first 100 calls."""


class RetryBudget:
    """The limit on a process's retries of calls to one dependency: max(10, n / 10) after n calls; thread-safe."""

    def __init__(self) -> None:
        self._tokens = self._lent = MAX_SAVED_RETRIES
        self._changing = threading.Lock()

    def called(self) -> None:
        """Count a first try: it adds a tenth of a token, but the first 100 only repay the 10 tokens of a new budget."""
        with self._changing:
            if self._lent > 0:
                self._lent -= RETRY_SHARE
            else:
                self._tokens = min(MAX_SAVED_RETRIES, self._tokens + RETRY_SHARE)

    def take(self) -> bool:
        """Take a token for a retry; return False, and take nothing, when less than a token is left."""
        with self._changing:
            if self._tokens < 1 - 1e-9:  # ten tenths are a whole
                return False
            self._tokens -= 1
            return True


class RetryBudgets:
    """The retry budgets of a process, one for each dependency, made at its first call."""

    def __init__(self) -> None:
        self._budgets: dict[str, RetryBudget] = {}

    def of(self, dependency: str) -> RetryBudget:
        """Return the budget of a dependency, always the same one."""
        return self._budgets.setdefault(dependency, RetryBudget())


class RetryPort(Protocol):
    """The interface by which `Context.retry` gets its process's retry budgets, and the time for deadlines."""

    @property
    def retry_budgets(self) -> RetryBudgets:
        """The retry budgets of this process."""

    def now_ms(self) -> int:
        """Return the time by which a task's deadline counts, in Unix milliseconds."""
