"""The loop's time as the time of day: virtual where the loop's is."""

from __future__ import annotations

import asyncio

from coditect.aio.clock import SystemClock


class LoopClock(SystemClock):
    """Begins a million seconds after the epoch."""

    def now_ms(self) -> int:
        return 1_000_000_000 + round(1000 * asyncio.get_running_loop().time())
