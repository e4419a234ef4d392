"""The ticks of a schedule: the instants at which it starts a workflow, computed from its declaration alone.

A cron expression is read by cronsim, in an IANA time zone. An hour that daylight saving skips or repeats is as Debian's
cron has it: `30 2 * * *` fires once on each day of the year, and `*/30 * * * *` every half hour. The ticks of a period
are its multiples since the epoch, so they need no memory of when the schedule was made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import islice
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from coditect.errors import InvalidTask

LEAST_PERIOD_MS = 1_000
ON_TIME_MS = 10_000
"""How many milliseconds late a tick may be carried out without counting as missed: an outage that goes unnoticed."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Ticks:
    """The ticks of one schedule: of a cron expression in a time zone, or the multiples of a period."""

    cron: str = ""
    zone: str = "UTC"
    every_ms: int = 0
    """The period in milliseconds; 0 for a cron expression."""
    jitter_ms: int = 0
    """The longest delay after a tick; the delay of one tick is some part of it, and always the same."""

    def after(self, at_ms: int) -> int | None:
        """Return the first tick after an instant; None when none comes in 50 years."""
        if self.every_ms:
            return (at_ms // self.every_ms + 1) * self.every_ms
        found = next(CronSim(self.cron, self._local(at_ms)), None)
        return None if found is None else _ms(found)

    def until(self, at_ms: int) -> Iterator[int]:
        """Yield the ticks up to an instant, the latest first."""
        if self.every_ms:
            yield from range(at_ms // self.every_ms * self.every_ms, -1, -self.every_ms)
            return
        for found in CronSim(self.cron, self._local(at_ms + 1000 - at_ms % 1000), reverse=True):
            tick_ms = _ms(found)
            if tick_ms <= at_ms:
                yield tick_ms

    def due_ms(self, name: str, tick_ms: int) -> int:
        """Return when a tick is to be carried out: its instant plus a delay up to the jitter, the same at each call."""
        if not self.jitter_ms:
            return tick_ms
        drawn = int.from_bytes(hashlib.sha256(f"{name} {tick_ms}".encode()).digest()[:8])
        return tick_ms + drawn % (self.jitter_ms + 1)

    def next_to_run(self, first_ms: int, now_ms: int, catch_up: str, max_missed: int) -> int | None:
        """Return the first tick from `first_ms` on that is to be carried out, treating missed ticks as `catch_up` says.

        `max_missed` bounds the missed ticks that `all` carries out: the latest ones, the oldest of them first. Returns
        None if none is left in 50 years.
        """
        on_time_ms = now_ms - ON_TIME_MS - self.jitter_ms
        if first_ms >= on_time_ms:
            return first_ms
        wanted = {"skip": 0, "latest": 1, "all": max_missed}[catch_up]
        found = None
        for tick_ms in islice(self.until(on_time_ms - 1), wanted):
            if tick_ms < first_ms:
                break
            found = tick_ms
        return self.after(on_time_ms - 1) if found is None else found

    def local(self, tick_ms: int) -> str:
        """Return a tick as text, in the schedule's time zone and with its offset from UTC."""
        return self._local(tick_ms).isoformat()

    def _local(self, at_ms: int) -> datetime:
        return (_EPOCH + timedelta(milliseconds=at_ms)).astimezone(_zone(self.zone))


def read_ticks(cron: object, zone: object, every_ms: int | None, jitter_ms: int, *, now_ms: int) -> Ticks:
    """Check the cron expression or period that a request gives for a schedule, and return the schedule's ticks.

    Raises:
        InvalidTask: when it declares none, or two kinds, or they are wrong.
    """
    if (cron is None) == (every_ms is None):
        raise InvalidTask("A schedule has either `cron` or `every`", fix='cron="0 8 * * 1-5", or every="1h"')
    if every_ms is not None:
        if every_ms < LEAST_PERIOD_MS:
            raise InvalidTask("A schedule's period is at least 1s", given=every_ms, fix='every="1s" or more')
        return Ticks(every_ms=every_ms, jitter_ms=jitter_ms)
    text, named = str(cron), str(zone or "UTC")
    try:
        _zone(named)
    except (ValueError, OSError, KeyError) as error:
        fix = "name a zone of the IANA database, such as Europe/Paris"
        raise InvalidTask("There is no such time zone", given=named[:80], fix=fix) from error
    try:
        CronSim(text, _EPOCH)
    except CronSimError as error:
        fix = "minute hour day month weekday, such as 0 8 * * 1-5; a sixth field before them is for seconds"
        raise InvalidTask("This is no cron expression", given=text[:80], reason=str(error), fix=fix) from error
    ticks = Ticks(text, named, 0, jitter_ms)
    if ticks.after(now_ms) is None:
        raise InvalidTask("The cron expression has no tick in the next 50 years", given=text[:80])
    return ticks


def _zone(name: str) -> tzinfo:
    return UTC if name == "UTC" else ZoneInfo(name)


def _ms(instant: datetime) -> int:
    return (instant - _EPOCH) // timedelta(milliseconds=1)
