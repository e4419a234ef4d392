"""The fleet's common wall time: the machine's clock, corrected by its difference from the registry's clock.

Deadlines and other instants travel between machines, and machines differ. Every process compares its clock with the
registry's when it starts and twice a minute, warns when they differ, and corrects its own from then on. A difference of
more than a day is no drift but a wrong setting, and is reported, not corrected. Without a registry the clock is not
corrected.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial

from coditect.aio.clock import Clock
from coditect.aio.supervisor import Supervisor
from coditect.errors import RegistryUnavailable
from coditect.model.ids import TaskId
from coditect.registry.port import Registry

log = logging.getLogger(__name__)

COMPARE_SECONDS = 30.0
TOLERATED_MS = 100
"""The clock difference up to which nothing is corrected; half of the registry's answer time, if that is longer."""
TOLD_MS = 1_000
MOST_CORRECTED_MS = 86_400_000
_FIX = "synchronize the machines' clocks (NTP)"


async def following(clock: Clock, registry: Registry, background: Supervisor) -> ReferenceClock:
    """Return a clock that is corrected by the registry's: compared at once, then every 30 s by a background task."""
    reference = ReferenceClock(clock)
    await reference.compare(registry)
    background.keep(partial(reference.follow, registry), name="clock", critical=False, idle=True)
    return reference


class ReferenceClock:
    """A wall clock corrected by the registry's, unless both differ by very little or by more than a day."""

    def __init__(self, own: Clock) -> None:
        self._own = own
        self._correction_ms = 0
        self._told_ms = 0
        self.ahead_ms = 0
        """How many ms the machine's clock was ahead of the registry's at the last comparison; negative: behind."""

    def now_ms(self) -> int:
        """Return the corrected wall time in milliseconds since the Unix epoch."""
        return self._own.now_ms() - self._correction_ms

    def chance(self) -> float:
        """Return a random number in [0, 1) from the random source of the wrapped clock."""
        return self._own.chance()

    def new_id(self) -> TaskId:
        """Return a new task id: a UUIDv7 of the machine's own, uncorrected time."""
        return self._own.new_id()

    @property
    def doubt(self) -> str:
        """Return a warning text with the clock's difference from the registry's clock; empty below 1 s."""
        if abs(self.ahead_ms) < TOLD_MS:
            return ""
        side = "ahead of" if self.ahead_ms > 0 else "behind"
        done = "" if self._correction_ms else " and too far to be corrected"
        return f"this machine's clock is {abs(self.ahead_ms) / 1000:.0f} s {side} the registry's{done}"

    async def follow(self, registry: Registry) -> None:
        """Compare the machine's clock with the registry's every 30 s, for ever."""
        while True:
            await asyncio.sleep(COMPARE_SECONDS)
            await self.compare(registry)

    async def compare(self, registry: Registry) -> None:
        """Ask the registry for its time once, and set the clock's correction; without an answer, change nothing."""
        before = self._own.now_ms()
        try:
            reference = await registry.now_ms()
        except RegistryUnavailable as error:
            log.debug("The clock is not compared: the registry does not answer", extra={"reason": str(error)})
            return
        after = self._own.now_ms()
        ahead = (before + after) // 2 - reference
        self.ahead_ms = 0 if abs(ahead) <= max(TOLERATED_MS, (after - before + 1) // 2) else ahead
        self._correction_ms = self.ahead_ms if abs(self.ahead_ms) <= MOST_CORRECTED_MS else 0
        self._tell()

    def _tell(self) -> None:
        if abs(self.ahead_ms - self._told_ms) < TOLD_MS:
            return
        self._told_ms = self.ahead_ms
        facts = {"ahead_ms": self.ahead_ms, "fix": _FIX}
        if abs(self.ahead_ms) > MOST_CORRECTED_MS:
            log.error("This machine's clock differs from the registry's by more than a day", extra=facts)
        elif self.ahead_ms:
            log.warning("This machine's clock differs from the registry's and is corrected", extra=facts)
        else:
            log.info("This machine's clock agrees with the registry's again")
