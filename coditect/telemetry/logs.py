"""Log formats: one JSON object a line when stderr is a pipe, plain text on a terminal; never passwords."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from coditect.settings.addresses import without_passwords

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_NOISY = ("aiormq", "asyncio")


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


class JsonLines(logging.Formatter):
    """A log formatter that writes one JSON object a line: timestamp, level, event, logger, and extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a log record as one line of JSON."""
        line: dict[str, object] = {
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
            **_extra(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return without_passwords(json.dumps(line, default=str))


class PlainLines(logging.Formatter):
    """A log formatter for people: time, level, sentence and extra fields on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a log record as one line for people, followed by a traceback if it has one."""
        moment = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        extra = _extra(record)
        trace = extra.pop("traceback", "")  # of a handler, perhaps of another process
        facts = " ".join(f"{name}={value}" for name, value in extra.items())
        text = f"{moment} {record.levelname.lower():7} {record.getMessage()} {facts}\n{trace}".rstrip()
        told = f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text
        return without_passwords(told)


def configure_logs(level: str) -> None:
    """Set up the logging of the process; a program calls this once, at its start.

    The AMQP library's own reports of lost connections, with tracebacks, are silenced; Coditect logs each loss once.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainLines() if sys.stderr.isatty() else JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)
