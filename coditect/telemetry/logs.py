"""Log formats: one JSON object a line for programs, plain text for people; known passwords are hidden.

A line of JSON has the keys `timestamp`, `level`, `event`, `logger`; where they are known `trace_id`, `span_id`,
`task_id`, `workflow_id`, `agent_id`; then what the event itself names.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TextIO

from coditect.model.arguments import shown
from coditect.settings.addresses import printable, secrets_in, without_passwords
from coditect.settings.settings import DEFAULTS, Settings
from coditect.telemetry.log_context import CURRENT_AGENT, ContextFields

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
OWN_LOGGERS = ("coditect", "dispatcher")
_NOISY = ("a2a", "aiormq", "asyncio", "httpx")
_IDS = ("trace_id", "span_id", "task_id", "workflow_id", "agent_id")
_UNSEEN_BY_PEOPLE = ("trace_id", "span_id")
HIDDEN = "***"


def _extra(record: logging.LogRecord) -> dict[str, object]:
    found = {name: value for name, value in vars(record).items() if name not in _STANDARD}
    return {name: found.pop(name) for name in _IDS if name in found} | found


class _Redacting(logging.Formatter):
    """A log formatter that hides the passwords in URLs, and the secrets that it is given."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        super().__init__()
        written = {form for secret in secrets for form in (secret, json.dumps(secret)[1:-1])}
        self._secrets = sorted(written, key=len, reverse=True)  # one may be a part of another

    def _redacted(self, line: str) -> str:
        for secret in self._secrets:
            line = line.replace(secret, HIDDEN)
        return without_passwords(line)


class JsonLines(_Redacting):
    """A log formatter that writes one JSON object a line: timestamp, level, event, logger, ids, and extra fields."""

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
        try:
            written = json.dumps(line, default=str, allow_nan=False)
        except Exception:  # noqa: BLE001 - a field that its author logs may be anything: the line is not lost
            written = json.dumps({name: one if isinstance(one, str) else shown(one) for name, one in line.items()})
        return self._redacted(written)


def record_of(line: str) -> logging.LogRecord | None:
    """Return the log record that `JsonLines` wrote as a line; None for any other line."""
    try:
        fields = json.loads(line) if line.startswith("{") else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or not {"timestamp", "level", "event", "logger"} <= fields.keys():
        return None
    moment, level, event, name = (str(fields.pop(key)) for key in ("timestamp", "level", "event", "logger"))
    text = fields.pop("exception", "")
    try:
        record = logging.makeLogRecord({**fields, "name": name, "msg": event, "args": (), "levelname": level.upper()})
        record.created = datetime.fromisoformat(moment).timestamp()
    except ValueError:
        return None
    record.levelno = logging.getLevelNamesMapping().get(record.levelname, logging.INFO)
    if text:
        vars(record)["traceback"] = text
    return record


class PlainLines(_Redacting):
    """A log formatter for people: time, level, sentence and extra fields on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a log record as one line for people, followed by a traceback if it has one."""
        moment = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        extra = _extra(record)
        trace = extra.pop("traceback", "")  # of a handler, perhaps of another process
        if extra.get("agent_id") == CURRENT_AGENT.get():  # the program itself, which its reader knows
            extra.pop("agent_id", None)
        facts = " ".join(f"{name}={value}" for name, value in extra.items() if name not in _UNSEEN_BY_PEOPLE)
        text = printable(f"{moment} {record.levelname.lower():7} {record.getMessage()} {facts}".rstrip())
        traces = (str(trace).rstrip(), self.formatException(record.exc_info) if record.exc_info else "")
        return self._redacted("\n".join([text, *(printable(one, keep="\n\t") for one in traces if one)]))


def configure_logs(settings: Settings = DEFAULTS, *, stream: TextIO | None = None) -> None:
    """Set up the logging of the process by the settings, to stderr or a stream, in place of any earlier setup.

    The reports of libraries about what Coditect logs itself, once, are silenced: lost connections, with tracebacks, and
    requests by A2A, with what strangers wrote.
    """
    stream = stream or sys.stderr
    human = stream.isatty() if settings.log_format == "auto" else settings.log_format == "human"
    secrets = secrets_in(settings)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainLines(secrets) if human else JsonLines(secrets))
    handler.addFilter(ContextFields())
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    enable_own_logs()
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def enable_own_logs() -> None:
    """Enable Coditect's loggers again: by default, `logging.config.dictConfig` disables all that exist already."""
    logging.disable(logging.NOTSET)
    for name, logger in logging.Logger.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.partition(".")[0] in OWN_LOGGERS:
            logger.disabled = False
