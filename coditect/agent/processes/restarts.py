"""The policy for processes that die: when to restart one, and when to give it up.

Only deaths count, never how long a start takes.
"""

from __future__ import annotations

from dataclasses import dataclass

from coditect.aio.backoff import Backoff


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """The rule for when a dead child process is started again, and after how many early deaths it is given up.

    The delay before restart n is 0, then `first_seconds`, doubled each time up to `cap_seconds`; after
    `healthy_seconds` of work the delay of a child starts from 0 again. A child that dies `start_attempts` times in a
    row before it was ever ready has failed to start. A child that stands stopped for `stopped_seconds` is killed and
    started again.
    """

    first_seconds: float = 0.5
    cap_seconds: float = 5.0
    healthy_seconds: float = 10.0
    start_attempts: int = 3
    settle_seconds: float = 1.0
    stopped_seconds: float = 10.0

    def deaths_in_a_row(self, before: int, *, worked_seconds: float) -> int:
        """Return the deaths in a row, counting a new one: 1 when the process had worked for `healthy_seconds`."""
        return 1 if worked_seconds >= self.healthy_seconds else before + 1

    def delay(self, deaths_in_a_row: int) -> float:
        """Return the seconds to wait before the next start of a process that died so many times in a row."""
        return 0.0 if deaths_in_a_row <= 1 else Backoff(self.first_seconds, self.cap_seconds).pause(deaths_in_a_row - 1)
