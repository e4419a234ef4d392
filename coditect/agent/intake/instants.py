"""The correction of a task's deadline and start-by instant when the sender's and the agent's clocks differ.

A limit travels as an instant beside the instant of the publication, both by the sender's clock: their difference is the
time that was left. Two signs show that the sender's clock and this machine's differ, however well each is kept. One is
a task that arrives before its publication. The other is a limit that is over by this machine's clock while the message
still has an `expiration` of no more than the time that was left: the broker, which needs no clock for an expiration,
would have dropped the message. In both cases the task counts as published now, with all of its time left.
"""

from __future__ import annotations

from dataclasses import replace

from coditect.aio.clock import Clock
from coditect.model.message import Message
from coditect.model.task import Limits, Task


def by_our_clock(task: Task, message: Message, clock: Clock) -> Task:
    """Return the task with its deadline and start-by instant moved to the agent's clock, if the clocks differ."""
    published_ms, limits = task.published_at_ms, task.limits
    if published_ms is None:
        return task
    now_ms = clock.now_ms()
    age_ms = now_ms - published_ms
    if age_ms >= 0 and not _refuted(limits, published_ms, message.expiration_ms, now_ms):
        return task
    here = replace(
        limits,
        deadline_ms=None if limits.deadline_ms is None else limits.deadline_ms + age_ms,
        start_by_ms=None if limits.start_by_ms is None else limits.start_by_ms + age_ms,
    )
    return replace(task, limits=here, published_at_ms=now_ms if task.owner is None else published_ms)


def _refuted(limits: Limits, published_ms: int, expiration_ms: int | None, now_ms: int) -> bool:
    """Tell whether clocks must differ: by the agent's clock a task is too late, but the broker has not expired it."""
    over = [one for one in (limits.deadline_ms, limits.start_by_ms) if one is not None and one <= now_ms]
    return expiration_ms is not None and any(expiration_ms <= one - published_ms for one in over)
