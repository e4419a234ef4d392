"""Retry policies: exponential backoff with full jitter, over a fixed set of retry-delay queues.

A delay is a queue with that TTL, never a message that a process holds. RabbitMQ expires only the head of a queue, so
every message of a queue must have the same TTL: hence one queue per delay. (Full jitter: Marc Brooker, "Exponential
Backoff And Jitter", AWS Architecture Blog, 2015.)
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from coditect.errors import Retryable
from coditect.model import arguments
from coditect.model.duration import Duration, seconds
from coditect.model.result import may_be_retried

RETRY_DELAYS_MS: tuple[int, ...] = (
    100, 250, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 300_000, 900_000, 3_600_000,
)  # fmt: skip
"""The delays that exist, in milliseconds; each is an exchange `coditect.retry.after.<delay>` and its queue."""


@dataclass(frozen=True, slots=True)
class Retry:
    """A capability's retry policy; by default three attempts, with a delay of up to 1 s that doubles up to 1 min.

    Raises:
        InputError: for a field out of its bounds; the error names the field.
    """

    max_attempts: int = 3
    """Number of attempts in all, the first included; 1 means no retry."""
    first: Duration = "1s"
    """Upper bound of the first delay; doubled for every further attempt."""
    cap: Duration = "1m"
    """Upper bound of any delay; at most 1 h."""
    on: tuple[type[BaseException], ...] = (Exception,)
    """Exceptions that are tried again (a tuple, or one class), unless their `retryable` attribute is False."""

    def __post_init__(self) -> None:
        arguments.whole("max_attempts", self.max_attempts, 1, 1_000)
        arguments.span("first", self.first)  # what is no duration shows here, not when the first attempt failed
        if seconds(arguments.span("cap", self.cap)) > RETRY_DELAYS_MS[-1] / 1000:
            arguments.refuse("cap", "A retry's cap is at most 1h", self.cap, "1h or less")
        object.__setattr__(self, "on", arguments.exceptions("on", self.on))

    def ceiling_seconds(self, attempt: int) -> float:
        """Return the longest delay, in seconds, after the given attempt (1 is the first)."""
        return float(min(seconds(self.cap), seconds(self.first) * 2.0 ** min(attempt - 1, 40)))

    def delay_seconds(self, attempt: int, chance: float) -> float:
        """Return the delay, in seconds, after the given attempt: the share `chance` (0 to 1) of the longest delay."""
        return self.ceiling_seconds(attempt) * chance

    def allows(self, error: BaseException) -> bool:
        """Tell whether the policy tries again after such an error, whatever the number of attempts so far."""
        kind = type(error)  # `isinstance` would ask the error itself for its class
        return issubclass(kind, RetryAfter) or (issubclass(kind, self.on) and may_be_retried(error))


class RetryAfter(Retryable):
    """The error with which a handler ends its attempt and asks for the next one after a delay: at least 0, at most 1 h.

    The attempt counts as a failed one: when it was the last, the task fails. The delay replaces the one that the retry
    policy would draw, and the policy's `on` does not matter.

    Raises:
        InputError: when the delay is out of its bounds; that ends the task.
    """

    def __init__(self, delay: Duration, reason: str = "The handler asked for another attempt later") -> None:
        longest = RETRY_DELAYS_MS[-1] / 1000
        self.delay_seconds = seconds(arguments.span("delay", delay))
        if self.delay_seconds > longest:
            fix = "RetryAfter('1h') or less; work for later is a task of its own"
            arguments.refuse("delay", "A task is tried again within 1h", delay, fix)
        super().__init__(reason, delay=delay)


def retry_of(retry: Retry | int | None) -> Retry:
    """Return a Retry as it is, or a Retry with the given number of attempts; None gives the default policy.

    Raises:
        InputError: for any other value.
    """
    if retry is None or isinstance(retry, Retry):
        return retry or Retry()
    if isinstance(retry, bool) or not isinstance(retry, int):
        arguments.refuse("retry", "This is no retry policy", retry, "retry=3, or retry=Retry(max_attempts=3)")
    return Retry(max_attempts=arguments.whole("retry", retry, 1, 1_000))


def retry_delay_ms(delay_seconds: float, chance: float) -> int:
    """Return the delay in ms of the retry-delay queue just below or just above the wanted delay, chosen by chance.

    The wanted delay is in seconds. The number, `chance` in [0, 1), keeps the mean delay. Outside of the range of the
    queues' delays there is one nearest queue, and no draw.
    """
    wanted = delay_seconds * 1000
    if wanted <= RETRY_DELAYS_MS[0]:
        return RETRY_DELAYS_MS[0]
    for lower, upper in pairwise(RETRY_DELAYS_MS):
        if wanted <= upper:
            return upper if chance < (wanted - lower) / (upper - lower) else lower
    return RETRY_DELAYS_MS[-1]


def delay_not_before_ms(delay_seconds: float) -> int:
    """Return the delay, in ms, of the first retry-delay queue that is not shorter than wanted; at most 1 h."""
    return next((delay_ms for delay_ms in RETRY_DELAYS_MS if delay_ms >= delay_seconds * 1000), RETRY_DELAYS_MS[-1])
