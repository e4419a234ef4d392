"""Retry budgets: a bound on the extra calls that retries put on a dependency which fails.

A retry helps against a failure that is rare. When most calls fail, retries only multiply the load, just when the
dependency can bear it least. So the calls of a process to one dependency share a budget: a token bucket, into which
each call puts a tenth of a token, and from which each retry takes a whole one. (Google, "Site Reliability
Engineering", chapter 22; Finagle's `RetryBudget`.)
"""

from __future__ import annotations

import threading
from typing import Protocol

SHARE = 0.1
"""The number of retries that each call earns: retries are at most a tenth of all calls."""
MOST_TOKENS = 10.0
"""The number of retries that may be saved up, and that a new budget lends: all retries of the first 100 calls."""


class RetryBudget:
    """The limit on a process's retries of calls to one dependency: max(10, n / 10) after n calls; thread-safe."""

    def __init__(self) -> None:
        self._tokens = self._lent = MOST_TOKENS
        self._changing = threading.Lock()

    def called(self) -> None:
        """Count a first try: it adds a tenth of a token, but the first 100 only repay the 10 tokens of a new budget."""
        with self._changing:
            if self._lent > 0:
                self._lent -= SHARE
            else:
                self._tokens = min(MOST_TOKENS, self._tokens + SHARE)

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
