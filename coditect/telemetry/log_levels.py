"""The levels of a process's loggers, changed while it runs, for good or for a time."""

from __future__ import annotations

import asyncio
import logging

from coditect.wire.control_messages import LogLevelOrder

log = logging.getLogger(__name__)

OURS = "coditect."


class LogLevels:
    """The logger levels of this process, which control messages change; use it on the process's event loop."""

    def __init__(self) -> None:
        self._ends: dict[str, asyncio.TimerHandle] = {}
        self._usual = logging.getLogger().level

    def carry_out(self, order: LogLevelOrder) -> None:
        """Set a logger's level as a control message orders, in place of an earlier order; reset it after its time.

        To reset is to set the root logger's level of the start, or no level of its own for a named logger. An order
        without a level does that at once, one without a time never.
        A name is a logger's, with or without the leading `coditect.`; an empty name is every logger without a level of
        its own.
        """
        name = _full(order.logger)
        if (earlier := self._ends.pop(name, None)) is not None:
            earlier.cancel()
        self._set(name, order.level)
        if order.level is not None and order.seconds is not None:
            self._ends[name] = asyncio.get_running_loop().call_later(order.seconds, self._restore, name)

    def _restore(self, name: str) -> None:
        self._ends.pop(name, None)
        self._set(name, None)

    def _set(self, name: str, level: str | None) -> None:
        usual = logging.NOTSET if name else self._usual
        logging.getLogger(name).setLevel(usual if level is None else level.upper())
        log.info("A log level was set", extra={"of": name or "all", "to": level or "as at the start"})


def _full(name: str) -> str:
    known = logging.getLogger().manager.loggerDict
    return name if not name or name in known or f"{OURS}{name}" not in known else f"{OURS}{name}"
