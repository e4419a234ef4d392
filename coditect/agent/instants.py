"""The instants of a task that was published by another clock, in terms of this one's.

A limit travels as an instant beside the instant of its publication, both by the sender's clock: their difference is
the time that was left. Two things show that the sender's clock and ours differ, however well each is kept. A task that
comes before it was published does; and so does a limit that is over by our clock while the message still has an
`expiration` of no more than that time, since the broker, which needs no clock for it, would have taken it away. The
task counts as published now then, with all of its time left.
"""

from __future__ import annotations

from dataclasses import replace

from coditect.aio.clock import Clock
from coditect.model.message import Message
from coditect.model.task import NO_LIMITS, Limits, Task


def by_our_clock(task: Task, message: Message, clock: Clock) -> Task:
    """The task with instants that can be compared with the clock's; itself where nothing speaks against its own."""
    published_ms, limits = task.published_at_ms, task.limits
    if limits is NO_LIMITS or published_ms is None:
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
    """Whether a limit is over by our clock that the broker would not have let pass."""
    over = [one for one in (limits.deadline_ms, limits.start_by_ms) if one is not None and one <= now_ms]
    return expiration_ms is not None and any(expiration_ms <= one - published_ms for one in over)
