"""Circuit breakers as values: the declaration of one, and its state as the control plane keeps it for a fleet."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum, StrEnum
from typing import Any, Self

from coditect.errors import BreakerOpen, InvalidTask
from coditect.model import arguments
from coditect.model.duration import Duration, seconds
from coditect.model.result import first_in

LONGEST_NAME_BYTES = 200
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
        arguments.text("name", self.name, shortest=1, longest=LONGEST_NAME_BYTES)
        arguments.whole("failures", self.failures, 1, 1_000_000)
        arguments.whole("calls", self.calls, 1, 1_000_000)
        if not 0 < arguments.number("rate", self.rate) <= 1:
            arguments.refuse("rate", "A rate is above 0 and at most 1", self.rate, "such as 0.5")
        for name, span in (("window", self.window), ("slow", self.slow), ("reset", self.reset)):
            if span is not None and not 0 < seconds(arguments.span(name, span)) <= LONGEST_RESET_SECONDS:
                arguments.refuse(name, "This span of a breaker is above 0 and at most 24h", span, "such as 30s")
        object.__setattr__(self, "on", _kinds("on", self.on))
        object.__setattr__(self, "ignore", _kinds("ignore", self.ignore))
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


def refusal_in(error: BaseException | None) -> BreakerOpen | None:
    """Return the BreakerOpen error that ended an attempt, alone or in an exception group; None if there is none."""
    return first_in(error, BreakerOpen)


def _kinds(parameter: str, given: Any) -> tuple[type[BaseException], ...]:
    kinds = given if isinstance(given, tuple) else (given,)
    for kind in kinds:
        if not isinstance(kind, type) or not issubclass(kind, BaseException):
            arguments.refuse(parameter, "This is no exception", kind, "such as (OSError, TimeoutError)")
    return kinds


def breaker_of(given: Breaker | str) -> Breaker:
    """Return a Breaker as it is, or, for a name, a Breaker of that name with the default settings.

    Raises:
        InputError: for any other value.
    """
    if isinstance(given, Breaker):
        return given
    return Breaker(arguments.text("breaker", given, shortest=1, longest=LONGEST_NAME_BYTES))


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
