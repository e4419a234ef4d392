"""What a user writes: an agent with its capabilities. Values only; nothing connects or starts here."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from coditect.agent.typed import Signature, signature
from coditect.errors import SetupError
from coditect.model.capability import LONGEST_SECONDS, CapabilitySpec, check_capability_name
from coditect.model.duration import Duration, seconds
from coditect.model.retry import Retry
from coditect.model.strategy import Strategy

Handler = TypeVar("Handler", bound=Callable[..., Any])

_AGENT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class Where(Enum):
    """Where a handler runs."""

    LOOP = "loop"
    THREAD = "thread"
    PROCESS = "process"


@dataclass(frozen=True, slots=True)
class Capability:
    """One capability of an agent: its handler, its types and its limits."""

    spec: CapabilitySpec
    handler: Callable[..., Any]
    signature: Signature
    where: Where
    retry: Retry

    @property
    def name(self) -> str:
        """Its name."""
        return self.spec.name

    @property
    def timeout_seconds(self) -> float:
        """Longest run of one attempt."""
        return self.spec.timeout_seconds

    @property
    def wants_context(self) -> bool:
        """Whether its handler, or the process that it runs in, is given one."""
        return self.signature.wants_context or self.where is Where.PROCESS


class Agent:
    """A declared agent. Handlers are added with `@agent.capability` and stay plain functions."""

    def __init__(
        self,
        name: str,
        *,
        version: str = "0.0.0",
        slots: int = 8,
        tags: Iterable[str] = (),
        description: str = "",
    ) -> None:
        if _AGENT_NAME.fullmatch(name) is None:
            raise SetupError("An agent's name is lower-case letters, digits, - and _", given=name)
        if not 1 <= slots <= 10_000:
            raise SetupError("An agent has between 1 and 10000 slots", given=slots)
        self.name = name
        self.version = version
        self.slots = slots
        self.tags = frozenset(tags)
        self.description = description
        self._capabilities: dict[str, Capability] = {}
        self._listeners: dict[str, Callable[..., Any]] = {}

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        """What it can do, in order of declaration."""
        return tuple(self._capabilities.values())

    @property
    def listeners(self) -> dict[str, Callable[..., Any]]:
        """Handlers of broadcasts, by topic."""
        return dict(self._listeners)

    def capability(
        self,
        name: str,
        *,
        timeout: Duration = "5m",
        retry: Retry | None = None,
        process: bool = False,
        description: str = "",
        tags: Iterable[str] = (),
        cost: float = 1.0,
        strategy: Strategy | str | None = None,
    ) -> Callable[[Handler], Handler]:
        """Declares a capability. The handler is called at least once per task, with the validated input.

        An async handler runs on the event loop, a plain one in a thread; with `process=True` either runs in
        a process of its own that a timeout really kills. Annotated types are validated and published as
        JSON Schema. An exception is a failed attempt; one whose `retryable` is False is the last. `strategy`
        is how clients pick the agent when a call does not say; without one the broker balances.

        With a timeout above 10 minutes its tasks need an owner: clients send them through the control plane. A
        task that comes without one all the same runs for at most 25 minutes.

        Raises: SetupError for a name taken twice, a timeout above 7 days, an unknown strategy or a wrong
        signature.
        """
        check_capability_name(name)
        limit = seconds(timeout)
        if name in self._capabilities:
            raise SetupError("An agent declares a capability once", capability=name)
        if not 0 < limit <= LONGEST_SECONDS:
            raise SetupError(
                "A capability's timeout is at most 7d", capability=name, given=timeout, fix="split the work"
            )
        asked = _strategy(name, strategy)

        def declare(handler: Handler) -> Handler:
            shape = signature(handler)
            spec = CapabilitySpec(
                name=name,
                description=description or _first_line(handler),
                input_schema=shape.input.schema,
                output_schema=shape.output.schema,
                cost=cost,
                tags=frozenset(tags),
                timeout_seconds=limit,
                strategy=asked,
            )
            where = _where(handler, process=process)
            self._capabilities[name] = Capability(spec, handler, shape, where, retry or Retry())
            return handler

        return declare

    def on_broadcast(self, topic: str) -> Callable[[Handler], Handler]:
        """Declares a listener: called with the data of every broadcast of this topic, at most once each."""

        def declare(handler: Handler) -> Handler:
            self._listeners[topic] = handler
            return handler

        return declare

    def __repr__(self) -> str:
        return f"Agent({self.name!r}, capabilities={sorted(self._capabilities)})"


def _strategy(name: str, given: Strategy | str | None) -> Strategy | None:
    try:
        return None if given is None else Strategy(given)
    except ValueError as error:
        raise SetupError(
            "There is no such strategy", capability=name, given=given, fix=f"one of {', '.join(Strategy)}"
        ) from error


def _where(handler: Callable[..., Any], *, process: bool) -> Where:
    if process:
        return Where.PROCESS
    return Where.LOOP if inspect.iscoroutinefunction(handler) else Where.THREAD


def _first_line(handler: Callable[..., Any]) -> str:
    return (inspect.getdoc(handler) or "").partition("\n")[0]
