"""The collector of errors that would escape a test: crashed background tasks, and errors of the loop's callbacks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def warnings_muted() -> Iterator[None]:
    """Drop log records of level WARNING and below inside the block, for processes that end after their servers."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)


class Crashes(logging.Handler):
    """The collector of exceptions that the given packages log as errors, or that the event loop reports."""

    def __init__(self, loop: asyncio.AbstractEventLoop, packages: Iterable[str]) -> None:
        super().__init__(logging.ERROR)
        self.found: list[Exception] = []
        self._loop = loop
        self._loggers = [logging.getLogger(package) for package in sorted(set(packages))]
        self._next = loop.get_exception_handler()

    def open(self) -> None:
        """Start collecting errors that are logged or reach the event loop."""
        for logger in self._loggers:
            logger.addHandler(self)
        self._loop.set_exception_handler(self._reached)

    def close(self) -> None:
        """Stop collecting errors, and give the loop its own error handler back."""
        for logger in self._loggers:
            logger.removeHandler(self)
        self._loop.set_exception_handler(self._next)
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Collect the exception of a logged error, if the log record has one."""
        if record.exc_info and isinstance(record.exc_info[1], Exception):
            self.add(record.exc_info[1], record.getMessage())

    def add(self, error: Exception, where: str) -> None:
        """Collect an exception, unless that was done before, and add a note that tells where it was found."""
        if not any(error is known for known in self.found):
            error.add_note(f"In the background of a TestFleet: {where}")
            self.found.append(error)

    def _reached(self, loop: asyncio.AbstractEventLoop, facts: dict[str, Any]) -> None:
        error = facts.get("exception")
        if isinstance(error, Exception):
            self.add(error, str(facts.get("message", "")))
        elif self._next is not None:
            self._next(loop, facts)
        else:
            loop.default_exception_handler(facts)
