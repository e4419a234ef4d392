"""Log formats: one JSON object a line for programs, plain text for people; known passwords are hidden.

A line of JSON has the keys `timestamp`, `level`, `event`, `logger`; where they are known `trace_id`, `span_id`,
`task_id`, `workflow_id`, `agent_id`; then what the event itself names.

`LogLevels` changes the levels of a process's loggers while it runs, for good or for a time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

from coditect.model.ids import AgentId
from coditect.model.task import Task
from coditect.settings.addresses import printable, secrets_in, without_passwords
from coditect.settings.settings import DEFAULTS, Settings
from coditect.telemetry.tracing import CURRENT, SKIPPED, read_traceparent
from coditect.wire.control_messages import LogLevelOrder

CURRENT_TASK: ContextVar[Task | None] = ContextVar("coditect_task", default=None)
"""The task that the running code works on."""
CURRENT_AGENT: ContextVar[AgentId | None] = ContextVar("coditect_agent", default=None)
"""The agent process in which the code runs."""


class ContextFields(logging.Filter):
    """A filter of a log handler that adds the present task's, workflow's, agent's and trace's ids to every record.

    What the record itself names stays as it is.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the known ids to a log record; always return True, so that the record is logged."""
        for name, value in _context():
            if name not in vars(record):
                setattr(record, name, value)
        return True


def _context() -> Iterator[tuple[str, str]]:
    task, agent_id, span = CURRENT_TASK.get(), CURRENT_AGENT.get(), CURRENT.get()
    place = span if span is not None else read_traceparent(None if task is None else task.traceparent)
    if place is not None and place is not SKIPPED:
        yield "trace_id", f"{place.trace_id:032x}"
        yield "span_id", f"{place.span_id:016x}"
    if task is not None and task.id is not None:
        yield "task_id", task.id
    if task is not None and task.owner is not None:
        yield "workflow_id", task.owner.workflow
    if agent_id is not None:
        yield "agent_id", agent_id


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


_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
OWN_LOGGERS = ("coditect", "dispatcher")
_NOISY = ("a2a", "aiormq", "asyncio", "httpx")
_IDS = ("trace_id", "span_id", "task_id", "workflow_id", "agent_id")
_UNSEEN_BY_PEOPLE = ("trace_id", "span_id")
HIDDEN = "***"
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"')
MOST_CHARACTERS = 2_000
"""The longest text of a field that JSON cannot express."""


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
            written = json.dumps({str(name): self._as_json(field) for name, field in line.items()})
        return _STRING.sub(lambda found: self._redacted(found[0]), written)  # none reaches beyond its string

    def _as_json(self, field: object) -> object:
        """Return a field of a log record as JSON can express it: unchanged if possible, else the start of its repr."""
        try:
            return json.loads(json.dumps(field, default=str, allow_nan=False))
        except Exception:  # noqa: BLE001 - a field that its author logs may be anything
            return self._redacted(_as_text(field, repr))[:MOST_CHARACTERS]  # cut last: no part of a secret is left


def _as_text(field: object, form: Callable[[object], str] = str) -> str:
    """Return a field of a log record as text; only the name of its type when the field has no text."""
    try:
        return form(field)
    except Exception:  # noqa: BLE001 - a stranger's own __str__ or __repr__
        return f"a {type(field).__name__}"


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
        facts = " ".join(f"{name}={_as_text(value)}" for name, value in extra.items() if name not in _UNSEEN_BY_PEOPLE)
        text = printable(f"{moment} {record.levelname.lower():7} {record.getMessage()} {facts}".rstrip())
        traces = (_as_text(trace).rstrip(), self.formatException(record.exc_info) if record.exc_info else "")
        return self._redacted("\n".join([text, *(printable(trace, keep="\n\t") for trace in traces if trace)]))


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
