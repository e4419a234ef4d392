"""The options with which a task is submitted, and their checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from difflib import get_close_matches
from functools import partial
from typing import Annotated, Any, Unpack

from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from coditect.model import arguments
from coditect.model.capability import ANYTHING, Priority, Strategy, Wanted
from coditect.model.duration import Duration, seconds
from coditect.model.ids import AgentId, TaskId
from coditect.model.message import HeaderTable
from coditect.model.option import Option
from coditect.wire.headers import checked_headers
from coditect.workflow.fields import instant_ms

SUBMIT_SECONDS = 30.0
MOST_KEY_BYTES = 1_000
LONGEST_DELAY_SECONDS = 10 * 366 * 86_400


@dataclass(frozen=True, slots=True)
class RequestKey:
    """An idempotency key with its request's fingerprint: the control plane refuses the key for another request."""

    key: str
    fingerprint: str
    """A text of at most 100 characters that is the same for the same request, such as a hash."""


@dataclass(frozen=True, slots=True)
class Options:
    """The options with which one task is submitted; every field has a sensible default.

    Raises:
        InputError: when the value of a field is wrong; the error names the field.
    """

    priority: Priority = Priority.P1
    """The priority, or its text: `"p0"`."""
    timeout: Duration | None = None
    """Longest run of one attempt; None means the capability's own."""
    deadline: Duration | datetime | None = None
    """The time from now, or the instant, after which the result is worthless; None means no deadline."""
    start_within: Duration | None = None
    """How long the task may wait before its start; None means no bound."""
    pin: AgentId | None = None
    """The preferred agent; another one does the task when the preferred agent does not take it within a second."""
    strategy: Strategy | None = None
    """The strategy to pick an agent, such as `"least_busy"`; None: the capability's own, else the broker's balance."""
    wanted: Wanted = ANYTHING
    """The wanted properties of the agent, for the strategy `best_match`, which this field alone implies."""
    max_attempts: int | None = None
    """Number of attempts in all, 1 to 1,000, never more than the capability's own number, which counts when None."""
    results: bool = True
    """Whether the task's result comes back to the client."""
    stream: bool = False
    """Whether the result comes in parts, as the handler yields them (`Handle.stream`); not for a durable task."""
    durable: bool = False
    """Whether the control plane keeps the task, so that it survives the broker's disks and may run for hours."""
    idempotency_key: str | RequestKey | None = None
    """A key of at most 1,000 bytes that makes the task durable and unique: the same key gives the same task."""
    delay: Duration | None = None
    """How long the control plane keeps the task, which this makes durable, before the publish; at most ten years."""
    at: datetime | None = None
    """The instant at which the control plane publishes the task, which this makes durable; None means at once."""
    submit_timeout: Duration = SUBMIT_SECONDS
    """How long a submit may wait for the broker: an outage, an alarm, a full queue."""
    headers: HeaderTable | None = None
    """Headers for the handler, such as `{"x-tenant": "blue"}`: at most 64 and 8 KiB; not for a durable task."""
    task_id: TaskId | None = None
    """A never used id for a direct task, if its submitter must know the id beforehand; None makes a new id."""
    kept: bool = field(init=False, repr=False, compare=False)
    """Whether the task is durable, since its submitter set `durable`, an idempotency key, `delay` or `at`."""
    plain: bool = field(init=False, repr=False, compare=False)
    """Whether the task has no preferred agent, no strategy and no wanted properties of the agent."""
    limited: bool = field(init=False, repr=False, compare=False)
    """Whether the task has a deadline, a latest start, a time limit or a number of attempts of its own."""

    def __post_init__(self) -> None:
        for name, default, checked in _CHECKED:
            given = getattr(self, name)
            if given is not default:
                object.__setattr__(self, name, checked(name, given))
        scheduled = self.delay is not None or self.at is not None
        object.__setattr__(self, "kept", self.durable or scheduled or self.idempotency_key is not None)
        plain = self.pin is None and self.strategy is None and self.wanted is ANYTHING
        object.__setattr__(self, "plain", plain)
        unlimited = self.deadline is self.start_within is self.timeout is self.max_attempts is None
        object.__setattr__(self, "limited", not unlimited)
        if self.headers is not None and self.kept:
            fix = "put it into the input, or submit without durable, idempotency_key, delay and at"
            arguments.refuse("headers", "A durable task has no headers", self.headers, fix)
        if self.delay is not None and self.at is not None:
            arguments.refuse("at", "A task has a delay or an instant, not both", self.at, "leave delay or at out")
        if self.stream and self.kept:
            fix = "submit without durable, idempotency_key, delay and at, or take the list of all parts as result"
            arguments.refuse("stream", "The control plane keeps no parts of a result", self.stream, fix)
        if self.stream and not self.results:
            arguments.refuse("stream", "The parts are results", self.stream, "results=True, or no stream")


class OptionFields(TypedDict, total=False):
    """The fields of `Options` as keyword arguments; None means not given, except where None is a valid value."""

    priority: Priority | str | None
    timeout: Duration | None
    deadline: Duration | datetime | None
    start_within: Duration | None
    pin: AgentId | str | None
    strategy: Strategy | str | None
    wanted: Wanted | None
    max_attempts: int | None
    results: bool | None
    stream: bool | None
    durable: bool | None
    idempotency_key: str | RequestKey | None
    delay: Duration | None
    at: datetime | None
    submit_timeout: Duration | None
    headers: HeaderTable | None
    task_id: TaskId | str | None


class TaskOptions(TypedDict, total=False):
    """The options of a task that commands and requests have; `options_of_task` makes `Options` of them."""

    priority: Annotated[Priority | str, Option("`p0` is urgent, `p2` is bulk.", "p1", short="-p")]
    timeout: Annotated[Duration, Option("Longest run of one attempt.", example="5m")]
    deadline: Annotated[Duration, Option("Not wanted any more after so long from now.", example="1h")]
    start_within: Annotated[Duration, Option("How long the task may wait before its start.", example="10m")]
    agent: Annotated[str, Option("Prefer this agent, by its id.", high=100)]
    strategy: Annotated[Strategy | str, Option("The strategy by which an agent is picked.")]
    max_attempts: Annotated[int, Option("Attempts in all, at most the capability's own.", low=1, high=1_000)]
    delay: Annotated[Duration, Option("Durable, and not published before so long from now.", example="5m")]
    at: Annotated[
        str, Option("Durable, and not published before this instant.", high=100, example="2026-12-24T08:00:00+01:00")
    ]


def options_of_task(options: TaskOptions, **more: Unpack[OptionFields]) -> Options:
    """Return the options of a task from those of a command or a request, and `more` that only one of them has.

    Raises:
        InputError: when an option is wrong; the error names it.
    """
    chosen: dict[str, Any] = {name: value for name, value in options.items() if value is not None} | {**more}
    chosen["pin"], at = chosen.pop("agent", None), chosen.pop("at", None)
    chosen["at"] = None if at is None else datetime.fromtimestamp(instant_ms(at) / 1000, UTC)
    return Options(**chosen)


def nearest_option(name: str) -> str:
    """Return the advice for an unknown keyword: the most similar field, or all fields."""
    near = get_close_matches(name, OptionFields.__annotations__, n=1)
    return f"{near[0]}=..." if near else f"one of {', '.join(OptionFields.__annotations__)}"


def deadline_at(deadline: Duration | datetime, now_ms: int) -> int:
    """Return the instant of a deadline, in milliseconds since the Unix epoch.

    Raises:
        InputError: when the deadline is an instant that has passed.
    """
    if not isinstance(deadline, datetime):
        return now_ms + int(seconds(deadline) * 1000)
    at_ms = int(deadline.timestamp() * 1000)
    if at_ms <= now_ms:
        fix = "an instant to come, after the task's delay; this machine's clock may be wrong"
        arguments.refuse("deadline", "The deadline has passed already", deadline, fix)
    return at_ms


def delay_of(options: Options, now_ms: int) -> tuple[int | str | None, int]:
    """Return the delay in a task's options (in ms, an instant as text, or None), and its end in ms since the epoch.

    Without a delay the end is `now_ms`.

    Raises:
        InputError: when the instant has passed, or is more than ten years away.
    """
    if options.delay is not None:
        delay_ms = max(1, round(seconds(options.delay) * 1000))
        return delay_ms, now_ms + delay_ms
    if options.at is None:
        return None, now_ms
    at_ms = round(options.at.timestamp() * 1000)
    if not now_ms < at_ms <= now_ms + LONGEST_DELAY_SECONDS * 1000:
        fix = "an instant to come, at most ten years from now; this machine's clock may be wrong"
        arguments.refuse("at", "The instant has passed already, or is too far away", options.at, fix)
    return options.at.isoformat(), at_ms


def checked_key(parameter: str, given: object) -> str | RequestKey:
    """Check that an argument is an idempotency key of 1 to 1,000 bytes, and return it."""
    key = given.key if isinstance(given, RequestKey) else given
    text = arguments.text(parameter, key, shortest=1, longest=MOST_KEY_BYTES)
    return given if isinstance(given, RequestKey) else text


def _wanted(parameter: str, given: object) -> Wanted:
    if not isinstance(given, Wanted):
        arguments.refuse(parameter, "This does not say what is wanted", given, 'such as Wanted(tags={"gpu"})')
    return given


def _delay(parameter: str, given: object) -> Duration:
    span = arguments.span(parameter, given)
    if not 0 < seconds(span) <= LONGEST_DELAY_SECONDS:
        arguments.refuse(parameter, "A delay is more than nothing and at most ten years", given, "such as 5m or 2d")
    return span


def _instant(parameter: str, given: object) -> datetime:
    if not isinstance(given, datetime):
        arguments.refuse(parameter, "This is no instant", given, "datetime.now(UTC) + ..., or delay= for a duration")
    arguments.moment(parameter, given)
    return given


_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "priority": partial(arguments.choice, kind=Priority),
    "timeout": arguments.span,
    "deadline": arguments.moment,
    "start_within": arguments.span,
    "pin": partial(arguments.text, shortest=1, longest=100),
    "strategy": partial(arguments.choice, kind=Strategy),
    "wanted": _wanted,
    "max_attempts": partial(arguments.whole, low=1, high=1_000),
    "results": arguments.yes_or_no,
    "stream": arguments.yes_or_no,
    "durable": arguments.yes_or_no,
    "idempotency_key": checked_key,
    "delay": _delay,
    "at": _instant,
    "submit_timeout": arguments.span,
    "headers": checked_headers,
    "task_id": partial(arguments.text, shortest=1),
}
_CHECKED = tuple((option.name, option.default, _CHECKS[option.name]) for option in fields(Options) if option.init)
"""The name and the default of each option, and the check of any other value."""
NONE_FIELDS = frozenset(name for name, default, _ in _CHECKED if default is None)
"""The names of the options that may be None."""
