"""The signs by which an operator says that a service is not well: an HTTP probe, lines of a log, a metric's bound.

A sign says in words what is wrong, and nothing when nothing is. It is the operator's, so it is looked at whatever kind
the service is of. Whoever may submit tasks may name one, and what it reads is written by others: a request goes to no
address where clouds serve credentials, and a pattern is searched in a process of its own, which can be ended.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from agents.deployment.service import http_get
from agents.tools.sources import confined
from coditect.errors import InputError
from coditect.integrations.http.addresses import AllowedHosts

_HOSTS = AllowedHosts(("*",), private=True)
_MOST_LOG_BYTES = 1_048_576
"""How much of a log one look reads: of more, the end."""
_MOST_LINE = 2_000
_SEARCH_SECONDS = 10.0
_SEARCH = f"""
import re, sys
pattern, at = re.compile(sys.argv[1]), 0
for line in sys.stdin.buffer.read().splitlines(keepends=True):
    if pattern.search(line[:{_MOST_LINE}].decode(errors="replace")):
        print(at)
    at += len(line)
"""
"""Prints the offset of each line that matches: a regular expression lets no other thread of its process run."""
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+-?\d+)?")


def _is_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"this is no regular expression: {error}") from error
    if "\0" in pattern:
        raise ValueError("a pattern has no NUL; write \\x00")
    return pattern


def _is_url(url: str) -> str:
    parts = urlsplit(url)
    written = url.isascii() and url.isprintable() and " " not in url
    if not written or not parts.hostname or "@" in parts.netloc or parts.port == 0:  # a port that is none raises, too
        raise ValueError("this is no URL to request: write http://HOST:PORT/PATH, in ASCII and without a user")
    return url


_Url = Annotated[str, Field(pattern=r"^https?://[^/\s]+", max_length=2_000), AfterValidator(_is_url)]


class _Sign(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HttpSign(_Sign):
    """A probe over HTTP: the service is unwell unless a GET of the URL is answered as it should be."""

    http: _Url = Field(description="the URL")
    status: int | None = Field(None, ge=100, le=599, description="the answer's status; default: any below 400")
    contains: str = Field("", max_length=1_000, description="a text that the answer contains")
    within_seconds: float = Field(2.0, gt=0, le=30)

    def trouble(self) -> str:
        """Return what is wrong with the answer to one request; empty if nothing is."""
        try:
            status, body = _get(self.http, self.within_seconds)
        except (OSError, HTTPException, ValueError) as error:
            return f"{_shown(self.http)} does not answer: {type(error).__name__}"
        if status != self.status if self.status is not None else status >= 400:
            return f"{_shown(self.http)} answers with status {status}"
        if self.contains not in body:
            return f"the answer of {_shown(self.http)} does not contain {self.contains!r}"
        return ""


class MetricSign(_Sign):
    """A bound of a metric in the text format of Prometheus: the service is unwell while a sample is outside."""

    metric: str = Field(
        pattern=r"^[a-zA-Z_:][\w:]*(\{[^{}]*\})?$", max_length=500, description='its name, and labels: queue{name="a"}'
    )
    url: _Url = Field(description="the URL of the service's metrics")
    above: float | None = Field(None, description="the service is unwell above this value")
    below: float | None = Field(None, description="the service is unwell below this value")
    within_seconds: float = Field(2.0, gt=0, le=30)

    @model_validator(mode="after")
    def _has_bound(self) -> MetricSign:
        if self.above is None and self.below is None:
            raise ValueError("a metric needs `above` or `below`")
        return self

    def trouble(self) -> str:
        """Return what is wrong with the metric's samples; empty if nothing is. A metric that is missing is wrong."""
        try:
            status, body = _get(self.url, self.within_seconds)
        except (OSError, HTTPException, ValueError) as error:
            return f"{_shown(self.url)} does not answer: {type(error).__name__}"
        values = [*self._values(body)] if status < 400 else []
        if not values:
            return f"{_shown(self.url)} has no metric {self.metric}"
        above = [value for value in values if self.above is not None and value > self.above]  # a NaN is neither
        below = [value for value in values if self.below is not None and value < self.below]
        if above:
            return f"{self.metric} is {max(above):g}, above {self.above:g}"
        return f"{self.metric} is {min(below):g}, below {self.below:g}" if below else ""

    def _values(self, body: str) -> Iterator[float]:
        named = _SAMPLE.fullmatch(f"{self.metric} 0")
        assert named is not None
        labels = {*_LABEL.findall(named[2] or "")}
        for line in body.splitlines():
            sample = _SAMPLE.fullmatch(line.strip()) if len(line) <= _MOST_LINE else None
            if sample is None or sample[1] != named[1] or not labels <= {*_LABEL.findall(sample[2] or "")}:
                continue
            with suppress(ValueError):
                yield float(sample[3])


class LogSign(_Sign):
    """A pattern in a log: the service is unwell when so many lines that match are written within a time."""

    log: str = Field(min_length=1, max_length=1_000, description="a file in the fleet's folder")
    pattern: Annotated[str, AfterValidator(_is_pattern)] = Field(min_length=1, max_length=500)
    lines: int = Field(1, ge=1, le=10_000)
    within_seconds: float = Field(60.0, gt=0, le=86_400)

    @property
    def key(self) -> str:
        """The name by which the offset of its lines is kept."""
        return f"{self.log}={self.pattern}"


def _tag(sign: object) -> str | None:
    has = sign if isinstance(sign, dict) else vars(sign) if isinstance(sign, BaseModel) else ()
    return next((tag for tag in ("http", "log", "metric") if tag in has), None)


Sign = Annotated[
    Annotated[HttpSign, Tag("http")] | Annotated[LogSign, Tag("log")] | Annotated[MetricSign, Tag("metric")],
    Discriminator(_tag),
]


@dataclass(slots=True)
class LogReader:
    """A reader of the lines that are written to a log from an offset on."""

    sign: LogSign
    offset: int
    _matched: deque[tuple[float, int]] = field(init=False)
    """The last matching lines of the sign's time: the instant at which each was read, and its offset."""

    def __post_init__(self) -> None:
        self._matched = deque(maxlen=self.sign.lines)

    @classmethod
    def at_end(cls, sign: LogSign) -> LogReader:
        """Return a reader of the lines that are written from now on."""
        return cls(sign, _size(Path(confined(sign.log))))

    @property
    def since(self) -> int:
        """The offset from which another reader finds the lines that count now."""
        return self._matched[0][1] if self._matched else self.offset

    @property
    def counted(self) -> list[int]:
        """The offsets of the lines that count now."""
        return [at for _, at in self._matched]

    def trouble(self) -> str:
        """Read the new lines, and return what is wrong with those of the sign's time; empty if nothing is.

        Raises:
            InputError: not retryable; the search for the pattern takes too long.
        """
        now = time.monotonic()
        self._matched.extend((now, at) for at in self._new_matches())
        while self._matched and now - self._matched[0][0] > self.sign.within_seconds:
            self._matched.popleft()
        if len(self._matched) < self.sign.lines:
            return ""
        return f"{self.sign.log} has new lines like {self.sign.pattern!r}: {len(self._matched)}"

    def _new_matches(self) -> list[int]:
        path = Path(confined(self.sign.log))
        size = _size(path)
        if size < self.offset:  # it was begun anew
            self.offset = 0
            self._matched.clear()
        if size == self.offset:
            return []
        begin = max(self.offset, size - _MOST_LOG_BYTES)
        with path.open("rb") as log:
            log.seek(begin)
            written = log.read(size - begin)
        whole = written.rfind(b"\n") + 1
        if len(written) - whole >= _MOST_LINE:  # else the rest of the line is not written yet
            whole = len(written)
        found = [begin + at for at in _search(self.sign.pattern, written[:whole])] if whole else []
        self.offset = begin + whole
        return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _shown(url: str) -> str:
    """Return a URL for what others read: its query may hold a key."""
    return url.partition("?")[0]


def _search(pattern: str, text: bytes) -> list[int]:
    command = [sys.executable, "-I", "-S", "-c", _SEARCH, pattern]
    try:
        ran = subprocess.run(command, input=text, stdout=subprocess.PIPE, env={}, timeout=_SEARCH_SECONDS, check=True)
    except subprocess.TimeoutExpired as error:
        fix = "write one without repetitions of repetitions"
        raise InputError("The search for a pattern takes too long", pattern=pattern, fix=fix) from error
    return [int(at) for at in ran.stdout.split()]


def _get(url: str, within_seconds: float) -> tuple[int, str]:
    return http_get(url, within_seconds, check=_HOSTS.checked)
