"""The limits that a capability may declare: a rate, a concurrency limit for each key, and a circuit breaker."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum, StrEnum
from math import ceil
from typing import Any, Self

from coditect.errors import BreakerOpen, InvalidTask
from coditect.model import arguments
from coditect.model.duration import Duration, seconds

MOST_PER_UNIT = 1_000_000
LONGEST_HOLD_SECONDS = 1.0
SHORTEST_HOLD_SECONDS = 0.1

_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600}
_PATTERN = re.compile(r"(\d{1,7})\s*/\s*([smh])")
_RATE_FIX = 'such as "10/s", "100/m" or "1000/h", or Rate("100/m", burst=10)'


@dataclass(frozen=True, slots=True)
class Rate:
    """A bound on the executions of a capability that begin in the whole fleet, such as `Rate("100/m", burst=10)`.

    In any span of t seconds at most `per_second` · t, rounded up, and `most_at_once` executions begin.

    Raises:
        InputError: for a limit or burst out of its bounds; the error names the parameter.
    """

    limit: str
    """A whole number of 1 to 1,000,000 executions per second, minute or hour: `10/s`, `100/m` or `1000/h`."""
    burst: int | None = None
    """The executions that may begin at once after a pause; None means as many as the limit gives in one second."""

    def __post_init__(self) -> None:
        limit = arguments.text("rate", self.limit)
        found = _PATTERN.fullmatch(limit.strip())
        if found is None or not 1 <= int(found[1]) <= MOST_PER_UNIT:
            arguments.refuse("rate", "A rate is a number per second, minute or hour", limit, _RATE_FIX)
        object.__setattr__(self, "limit", f"{int(found[1])}/{found[2]}")
        if self.burst is not None:
            arguments.whole("burst", self.burst, 1, MOST_PER_UNIT)

    @property
    def per_second(self) -> float:
        """The mean number of executions per second that the rate allows."""
        count, _, unit = self.limit.partition("/")
        return int(count) / _UNIT_SECONDS[unit]

    @property
    def most_at_once(self) -> int:
        """The executions that may begin at once: the declared burst, or else those of one second, rounded up."""
        return self.burst or max(1, ceil(self.per_second))

    @property
    def hold_seconds(self) -> float:
        """The seconds for which an agent may keep an unused token (the right to begin one execution); at most 1.

        It is the time in which the rate adds half a burst, but not under that for one token, or 0.1 s if that is less.
        """
        half_a_burst, interval = (self.most_at_once - 1) / (2 * self.per_second), 1 / self.per_second
        return max(min(SHORTEST_HOLD_SECONDS, interval), min(LONGEST_HOLD_SECONDS, half_a_burst))

    @property
    def capacity(self) -> int:
        """The tokens of a full token bucket: the burst minus those that are added in `hold_seconds`; at least 1."""
        return max(1, self.most_at_once - int(self.per_second * self.hold_seconds))

    def __str__(self) -> str:
        return self.limit if self.burst is None else f"{self.limit}, burst {self.burst}"


def rate_of(rate: Rate | str | None) -> Rate | None:
    """Return a Rate as it is, or the Rate that a text such as `"100/m"` states; None stays None.

    Raises:
        InputError: for any other value.
    """
    if rate is None or isinstance(rate, Rate):
        return rate
    if not isinstance(rate, str):
        arguments.refuse("rate", "A rate is a number per second, minute or hour", rate, _RATE_FIX)
    return Rate(rate)


KEY_LOCKS = "concurrency:"
"""The prefix of the names of the locks that limit the tasks with one key; each grant belongs to one execution."""
MAX_CONCURRENCY_LIMIT = 1_000
LONGEST_TEMPLATE_BYTES = 500
MAX_LIMIT_KEY_BYTES = 300
_FIELD = re.compile(r"\{input((?:\.[A-Za-z0-9_-]+)*)\}")
_CONCURRENCY_FIX = 'such as ("{input.repo}", 1): a template of the key, and how many tasks with one key may run at once'


@dataclass(frozen=True, slots=True)
class ConcurrencyLimit:
    """A bound on the tasks of one capability that run at once in the whole fleet for each key.

    Raises:
        InputError: for a template or number out of its bounds.
    """

    template: str
    """The text of the key, in which `{input}` or `{input.repo}` stands for the task's input or a field of it."""
    most: int

    def __post_init__(self) -> None:
        template = arguments.text("concurrency", self.template, shortest=1, longest=LONGEST_TEMPLATE_BYTES)
        if set("{}") & set(_FIELD.sub("", template)):
            arguments.refuse(
                "concurrency", "A key's template has only fields of the input in braces", template, _CONCURRENCY_FIX
            )
        arguments.whole("concurrency", self.most, 1, MAX_CONCURRENCY_LIMIT)

    def key(self, value: Any) -> str:
        """Return the key of a task with this input; a long key is replaced by its hash and its first 40 characters.

        Raises:
            InvalidTask: when the input lacks a field of the template, or the field is no text, number or truth value.
        """
        key = _FIELD.sub(lambda found: _text(value, found[1].split(".")[1:]), self.template)
        raw = key.encode(errors="surrogatepass")
        if len(raw) <= MAX_LIMIT_KEY_BYTES:
            return key
        return hashlib.sha256(raw).hexdigest() + key[:40]


def _text(value: Any, path: list[str]) -> str:
    at = "input"
    for name in path:
        at += f".{name}"
        if not isinstance(value, Mapping) or name not in value:
            raise InvalidTask(
                "The input lacks a field of the key by which its capability limits concurrency",
                field=at,
                fix="submit the task with the field",
            )
        value = value[name]
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return str(value)
    raise InvalidTask(
        "A field of the key by which its capability limits concurrency is no text, number or truth value",
        field=at,
        given=type(value).__name__,
        fix="submit the task with a text in the field",
    )


def concurrency_of(limit: tuple[str, int] | None) -> ConcurrencyLimit | None:
    """Return the ConcurrencyLimit of a pair: the template of a key, and the most tasks at once; None stays None.

    Raises:
        InputError: when the value is no pair of a template and a whole number.
    """
    if limit is None:
        return None
    if not isinstance(limit, tuple) or len(limit) != 2:
        arguments.refuse("concurrency", "A limit on concurrency is a pair", limit, _CONCURRENCY_FIX)
    return ConcurrencyLimit(*limit)


MAX_BREAKER_NAME_BYTES = 200
LONGEST_RESET_SECONDS = 24 * 3600.0


class BreakerScope(StrEnum):
    """The set of processes that share one breaker: the whole fleet, or only one process."""

    FLEET = "fleet"
    LOCAL = "local"


class CallVerdict(Enum):
    """How a breaker counts an ended call of its dependency: as a success, as a failure, or not at all."""

    SUCCESS = "success"
    FAILURE = "failure"
    NEUTRAL = "neutral"
    """The call says nothing about the dependency: it was canceled soon, or another breaker refused it."""


@dataclass(frozen=True, slots=True)
class Breaker:
    """A circuit breaker of one dependency, as its user declares it; it opens after too many failed or slow calls.

    Raises:
        InputError: for a field out of its bounds; the error names the field.
    """

    name: str
    """The name of the dependency, such as `github`; the breaker of a fleet is known by it."""
    failures: int = 5
    """Number of failures in a row that open the breaker."""
    rate: float = 0.5
    """Share of failed calls, above 0 to 1, that opens the breaker when `window` had at least `calls` calls."""
    calls: int = 20
    window: Duration = "30s"
    slow: Duration | None = None
    """A call that takes longer counts as a failure, also when it succeeds or is canceled; None: no call is too slow."""
    reset: Duration = "30s"
    """The probe interval: an open breaker lets one call through in each, and a success closes the breaker."""
    on: tuple[type[BaseException], ...] = (Exception,)
    """Exceptions that count as failures of the dependency (a tuple, or one class); any other counts as a success."""
    ignore: tuple[type[BaseException], ...] = ()
    """Exceptions out of `on` that count as successes all the same: the dependency has answered."""
    scope: BreakerScope | str = BreakerScope.FLEET

    def __post_init__(self) -> None:
        arguments.text("name", self.name, shortest=1, longest=MAX_BREAKER_NAME_BYTES)
        arguments.whole("failures", self.failures, 1, 1_000_000)
        arguments.whole("calls", self.calls, 1, 1_000_000)
        if not 0 < arguments.number("rate", self.rate) <= 1:
            arguments.refuse("rate", "A rate is above 0 and at most 1", self.rate, "such as 0.5")
        for name, span in (("window", self.window), ("slow", self.slow), ("reset", self.reset)):
            if span is not None and not 0 < seconds(arguments.span(name, span)) <= LONGEST_RESET_SECONDS:
                arguments.refuse(name, "This span of a breaker is above 0 and at most 24h", span, "such as 30s")
        for name in ("on", "ignore"):
            object.__setattr__(self, name, arguments.exceptions(name, getattr(self, name)))
        object.__setattr__(self, "scope", arguments.choice("scope", self.scope, BreakerScope))

    @property
    def reset_seconds(self) -> float:
        """The probe interval in seconds: an open breaker lets one call through in each interval."""
        return seconds(self.reset)

    def judge(self, error: BaseException | None, took_seconds: float = 0.0) -> CallVerdict:
        """Return how the breaker counts an ended call, by its error (None without one) and the seconds that it took."""
        kind = type(error)  # `isinstance` would ask the error itself for its class
        if issubclass(kind, BreakerOpen):
            return CallVerdict.NEUTRAL
        if issubclass(kind, self.on) and not issubclass(kind, self.ignore):
            return CallVerdict.FAILURE
        if self.slow is not None and took_seconds > seconds(self.slow):
            return CallVerdict.FAILURE  # also when it was canceled: what hangs is mostly ended by somebody's time limit
        if error is not None and not issubclass(kind, (*self.on, Exception)):
            return CallVerdict.NEUTRAL
        return CallVerdict.SUCCESS


def breaker_of(breaker: Breaker | str) -> Breaker:
    """Return a Breaker as it is, or, for a name, a Breaker of that name with the default settings.

    Raises:
        InputError: for any other value.
    """
    if isinstance(breaker, Breaker):
        return breaker
    return Breaker(arguments.text("breaker", breaker, shortest=1, longest=MAX_BREAKER_NAME_BYTES))


@dataclass(frozen=True, slots=True)
class BreakerState:
    """The state of a fleet's breaker, as the control plane sends it in answers and broadcasts."""

    name: str
    open: bool
    version: int
    """A number that grows with every change; a state with a smaller number is ignored."""
    retry_ms: int | None = None
    """Milliseconds until the next probe may be permitted; None while an operator holds the breaker open."""
    reason: str = ""
    by: str = ""
    """The agent, client or operator that opened or closed the breaker last."""
    since_ms: int = 0
    """When it was opened or closed, in milliseconds since the epoch."""
    permit: int = 0
    """The number of the probe that the answer permits; 0 without a permit."""

    def as_json(self) -> dict[str, Any]:
        """Return the state as the JSON object of a message or an answer."""
        return asdict(self)

    @classmethod
    def read(cls, value: Any) -> Self:
        """Parse the state of a breaker from the JSON object of a message or an answer.

        Raises:
            InvalidTask: when the value is no such state.
        """
        try:
            retry_ms = value["retry_ms"]
            return cls(
                name=str(value["name"]),
                open=value["open"] is True,
                version=int(value["version"]),
                retry_ms=None if retry_ms is None else int(retry_ms),
                reason=str(value.get("reason", "")),
                by=str(value.get("by", "")),
                since_ms=int(value.get("since_ms", 0)),
                permit=int(value.get("permit", 0)),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidTask("This is no state of a breaker", reason=repr(error)[:200]) from error
