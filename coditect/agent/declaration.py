"""The declaration of an agent with its capabilities, as a user writes it, and the loader that finds it in a file.

An agent is values only: nothing connects or starts.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import wraps
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, ParamSpec, TypeVar

from coditect.agent.batch import BatchPolicy, batch_policy, checked_batch_handler, single_task_handler
from coditect.agent.signature import (
    CONTEXT,
    CallNext,
    Dependency,
    Lifespan,
    Middleware,
    Providers,
    Signature,
    checked_lifespan,
    checked_middleware,
    in_parts,
    line_of,
    signature,
    with_dependencies,
    yielded_type,
)
from coditect.errors import CoditectError, InputError, SetupError
from coditect.model import arguments
from coditect.model.capability import LONGEST_SECONDS, CapabilitySpec, Strategy, check_capability_name
from coditect.model.duration import Duration, seconds
from coditect.model.limits import Breaker, ConcurrencyLimit, Rate, breaker_of, concurrency_of, rate_of
from coditect.model.prediction import MOST_FEATURES
from coditect.model.retry import Retry, retry_of

Handler = TypeVar("Handler", bound=Callable[..., Any])
P = ParamSpec("P")
R = TypeVar("R")

MOST_TEXT_BYTES = 10_000
MOST_QUEUED = 100_000_000
_AGENT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_FEATURE = re.compile(r"(?=.{1,100}\Z)[^\s.=]+(?:\.[^\s.=]+)*")


class Where(Enum):
    """The place in which a handler runs: the event loop, a thread, or a process of its own."""

    LOOP = "loop"
    THREAD = "thread"
    PROCESS = "process"


@dataclass(frozen=True, slots=True)
class Capability:
    """A declared capability of an agent: the handler, its types and its limits."""

    spec: CapabilitySpec
    handler: Callable[..., Any]
    signature: Signature
    where: Where
    retry: Retry
    breaker: Breaker | None = None
    """The circuit breaker of the dependency that the handler calls; each attempt is one call."""
    fallback: str | None = None
    """The capability that gets the tasks while the breaker is open; None: they wait in their queue."""
    binary: bool = False
    """Whether input or value are bytes, so that the capability takes no tasks of a workflow."""
    batch: BatchPolicy | None = None
    batch_handler: Callable[..., Any] | None = None
    """The handler that takes lists, of a capability with `batch`; `handler` calls it with a single task."""
    process_limits: ProcessLimits | None = None
    """The limits after which a process of the handler is replaced; None: it runs as long as the agent."""
    middleware: CallNext | None = None
    """The call through the agent's middleware to the handler, set at the start of the agent; None without any."""
    concurrency: ConcurrencyLimit | None = None
    """The bound on the tasks with the same key that run at once in the whole fleet; None: no bound."""
    guarded: bool = field(init=False)
    """True when an execution must pass a guard (breaker, rate or concurrency limit) before it begins."""
    needs_context: bool = field(init=False)
    """True when a run needs the task's context: for the handler, for middleware, or to reach a process."""

    def __post_init__(self) -> None:
        guarded = self.breaker is not None or self.spec.rate is not None or self.concurrency is not None
        needs = self.where is Where.PROCESS or self.middleware is not None or self.signature.wants_context
        object.__setattr__(self, "guarded", guarded)  # here and not as properties: each task asks
        object.__setattr__(self, "needs_context", needs)

    @property
    def name(self) -> str:
        """The capability's name, such as `code.review`."""
        return self.spec.name


def _known_parameters(owner: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator whose function refuses an unknown parameter by the name of the nearest one."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        known = [*inspect.signature(function).parameters][1:]

        @wraps(function)
        def checked(*args: P.args, **named: P.kwargs) -> R:
            try:
                arguments.check_names(owner, named, known)
            except InputError as error:
                raise _refusal(error) from None
            return function(*args, **named)

        return checked

    return decorate


class Agent:
    """An agent as its author declares it; `@agent.capability` adds handlers, which stay plain functions."""

    @_known_parameters("An agent")
    def __init__(  # noqa: PLR0913 - each is a fact of its own, and has a default
        self,
        name: str,
        *,
        version: str = "0.0.0",
        slots: int = 8,
        reserve: int = 1,
        tags: Iterable[str] | str = (),
        description: str = "",
        breakers: Iterable[Breaker] = (),
        lifespan: Lifespan | None = None,
        middleware: Iterable[Middleware] = (),
    ) -> None:
        """Declare an agent; each of its processes runs up to `slots` tasks at once.

        With two slots or more, `reserve` of them are kept for P0: `slots=8` runs seven tasks of P1 and P2. With
        `reserve=0` tasks of any level may take all slots, and P0 waits for the next free slot. `breakers` declares
        those that handlers use by name: `ctx.breaker("github")`; one that is not declared has the defaults.

        `lifespan` is a function of the agent that returns an async context manager. Its start runs before the agent
        takes tasks, its stop after the drain; handlers find its value as `ctx.lifespan`.

        `middleware` are the functions around each call of a handler, the first one outermost; see `middleware`.

        Raises:
            SetupError: when a parameter is wrong; the error names the parameter, and file and line.
        """
        try:
            if not isinstance(name, str) or _AGENT_NAME.fullmatch(name) is None:
                fix = 'such as Agent("reviewer")'
                arguments.refuse("name", "An agent's name is lower-case letters, digits, - and _", name, fix)
            self.name = name
            self.version = arguments.text("version", version)
            self.slots = arguments.whole("slots", slots, 1, 10_000)
            self.reserve = arguments.whole("reserve", reserve, 0, max(1, slots - 1))
            self.tags = arguments.texts("tags", tags)
            self.description = arguments.text("description", description, longest=MOST_TEXT_BYTES)
            self._breakers: dict[str, Breaker] = {}
            self.breakers = MappingProxyType(self._breakers)
            """The circuit breakers that the agent and its capabilities declare, by name."""
            for breaker in breakers:
                self._declare_breaker(breaker)
            self.lifespan = checked_lifespan(lifespan)
            self._middleware: list[Middleware] = []
            for layer in middleware:
                self.middleware(layer)
        except InputError as error:
            raise _refusal(error) from None
        self._capabilities: dict[str, Capability] = {}
        self._listeners: dict[str, Callable[..., Any]] = {}
        self.listeners = MappingProxyType(self._listeners)
        """The handlers of broadcasts, by topic."""
        self.handoff_policy: Callable[..., Any] | None = None
        """The function that decides about offered tasks, as `on_handoff` says; None for the default."""
        self._providers = Providers()
        if inspect.isroutine(self.lifespan) and (shared := yielded_type(self.lifespan)) is not None:
            self._providers.by_type[shared] = Dependency()

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        """The agent's capabilities, in order of declaration."""
        return tuple(self._capabilities.values())

    def _declare_breaker(self, breaker: Breaker | str) -> Breaker:
        """Add a breaker to the agent and return it; a name stands for the breaker of that name, or a new one.

        Raises:
            InputError: when the name is declared with other values.
        """
        if isinstance(breaker, str) and breaker in self._breakers:
            return self._breakers[breaker]
        declared = breaker_of(breaker)
        if self._breakers.setdefault(declared.name, declared) != declared:
            arguments.refuse("breaker", "An agent declares a breaker once", breaker, "the same values, or another name")
        return declared

    def _guard(
        self, name: str, breaker: Breaker | str | None, fallback: str | None
    ) -> tuple[Breaker | None, str | None]:
        """Check a capability's breaker and fallback capability, add the breaker to the agent, and return both.

        Raises:
            InputError: when one of them is wrong, or the fallback has no breaker that could open.
        """
        guard = None if breaker is None else self._declare_breaker(breaker)
        instead = None if fallback is None else check_capability_name(fallback)
        if instead is not None and (guard is None or instead == name):
            arguments.refuse("fallback", "A fallback is another capability, behind a breaker", fallback, "breaker=...")
        return guard, instead

    @property
    def middleware_stack(self) -> tuple[Middleware, ...]:
        """The functions around each call of a handler, the first one outermost."""
        return tuple(self._middleware)

    def middleware(self, layer: Handler) -> Handler:
        """Declare a function that runs around each call of a handler, inside the middleware that was declared before.

        `async def layer(ctx, call_next)` gets a `MiddlewareContext`, sets `ctx.input` if it wants another one, and
        returns the value of `await call_next(ctx)` or another one. Its errors are those of the attempt; the time limit
        and cancellation of the task reach it like a handler. For a handler in a thread or a process it runs on the
        agent's event loop around the call.

        Raises:
            SetupError: when it is no async function of two parameters; the error names file and line.
        """
        try:
            self._middleware.append(checked_middleware(layer))
        except SetupError as error:
            error.facts.setdefault("at", _written_at())
            raise
        return layer

    @_known_parameters("A capability")
    def capability(  # noqa: PLR0913 - each is a fact of its own, and has a default
        self,
        name: str,
        *,
        timeout: Duration = "5m",
        retry: Retry | int | None = None,
        process: bool = False,
        description: str = "",
        tags: Iterable[str] | str = (),
        cost: float = 1.0,
        strategy: Strategy | str | None = None,
        features: Sequence[str] | str = (),
        max_queued: int | None = None,
        rate: Rate | str | None = None,
        concurrency: tuple[str, int] | None = None,
        breaker: Breaker | str | None = None,
        fallback: str | None = None,
        batch: int | None = None,
        within: Duration | None = None,
        max_tasks_per_process: int | None = None,
        max_memory: str | int | None = None,
    ) -> Callable[[Handler], Handler]:
        """Declare a capability by decorating its handler, which gets validated input and may run again for a task.

        An async handler runs on the event loop, a plain one in a thread; with `process=True` either runs in a process
        of its own that a timeout really kills. Annotated types are validated and published as JSON Schema. An exception
        is a failed attempt; an exception whose `retryable` is False makes the attempt the last. `strategy` is how
        clients pick the agent when a call does not say; without a strategy the broker balances. `features` names fields
        of the input, such as `["language", "options.depth"]`, by which the strategy `predictive` expects run time and
        success. A generator, async or plain, yields its result in parts: one by one for a task with `stream=True`, as
        one list for any other.

        `retry=3` is short for `Retry(max_attempts=3)`, and a plain text may stand for one tag or a strategy.
        `max_queued=1000` bounds what waits: the broker refuses a P2 task when 1,000 of P2 wait already, a P1 task when
        2,000 of P1 wait, and a P0 task never; `submit` then raises `Overloaded`. By default nothing is refused. The
        bound is part of the queues: `coditect topology apply --dry-run` tells how to change it later.

        `rate="100/m"` (or `/s`, `/h`, or a `Rate`) bounds how often executions begin in the whole fleet; others wait.
        `concurrency=("{input.repo}", 1)` bounds how many tasks with the same text for a key run at once in the fleet.

        With a `breaker`, by name or as a `Breaker`, each attempt is one call of that dependency. While it is open, the
        tasks wait in their queue, or go to the capability `fallback`; no attempt of theirs counts.

        With `batch=100` an async handler takes a list of inputs, and if it wants a list of contexts, and returns a list
        of values or exceptions. A batch begins with 100 tasks, or when its first one has waited for `within` (default
        50 ms, at most 60 s). Each task holds a slot, and is limited, retried, canceled and answered by itself.

        With `process=True` a process is replaced after `max_tasks_per_process` tasks, or after a task at whose end it
        holds more than `max_memory`, such as "512MB" or a number of bytes.
        A capability with a timeout above 10 minutes takes durable tasks, and tasks that bound themselves to 25 minutes.

        Raises:
            SetupError: at the declaration, when a parameter is wrong, the agent has the name already, or the handler's
                shape is not `(task)` or `(task, ctx)`; the error names file and line, the parameter, and what to write.
        """
        try:
            self._check_new(name)
            policy, (guard, instead) = retry_of(retry), self._guard(name, breaker, fallback)
            in_process, limit = arguments.yes_or_no("process", process), concurrency_of(concurrency)
            replaced = process_limits(max_tasks_per_process, max_memory, process=in_process)
            gathered = batch_policy(batch, within, slots=self.slots - min(self.reserve, self.slots - 1))
            plain = CapabilitySpec(
                name=name,
                description=arguments.text("description", description, longest=MOST_TEXT_BYTES),
                cost=arguments.number("cost", cost),
                tags=arguments.texts("tags", tags),
                timeout_seconds=_limit_seconds(timeout),
                strategy=None if strategy is None else arguments.choice("strategy", strategy, Strategy),
                features=_features(features),
                max_queued=None if max_queued is None else arguments.whole("max_queued", max_queued, 1, MOST_QUEUED),
                rate=rate_of(rate),
            )
        except InputError as error:
            raise _refusal(error) from None

        def declare(handler: Handler) -> Handler:
            shape = signature(handler, self._providers, of_batches=gathered is not None)
            where, spec = _where(handler, process=in_process), _described(plain, handler, shape)
            called = _called(handler, shape)
            made = Capability(spec, called, shape, where, policy, guard, instead, shape.binary, process_limits=replaced)
            self._capabilities[name] = _batched(replace(made, concurrency=limit), gathered)
            return handler

        return declare

    def _check_new(self, name: str) -> None:
        check_capability_name(name)
        if name in self._capabilities:
            arguments.refuse("name", "An agent declares a capability once", name, "another name")

    def provider(self, provide: Handler) -> Handler:
        """Declare a function as the provider of its return type, for parameters of that type in later handlers.

        A handler's parameter with that annotation gets such a value; see `Depends`.

        Raises:
            SetupError: when the function has no return type, or that type has a provider already.
        """
        try:
            kind = yielded_type(provide)
            if not isinstance(kind, type) or kind in self._providers.by_type:
                fix = "annotate what it returns or yields by a class that no other provider of the agent returns"
                raise SetupError(
                    "A provider is found by the type that it returns", returns=arguments.shown(kind), fix=fix
                )
            self._providers.by_type[kind] = self._providers.of(provide)
        except SetupError as error:
            error.facts.setdefault("at", _written_at())
            raise
        return provide

    def on_broadcast(self, topic: str) -> Callable[[Handler], Handler]:
        """Declare a topic's listener, in place of an earlier one; it gets the data of each broadcast at most once.

        Raises:
            SetupError: when the topic is no text, or the listener cannot be called.
        """
        try:
            arguments.text("topic", topic, shortest=1)
        except InputError as error:
            raise _refusal(error) from None

        def declare(handler: Handler) -> Handler:
            if not callable(handler):
                raise SetupError("A listener is a function", given=arguments.shown(handler), at=_written_at())
            self._listeners[topic] = handler
            return handler

        return declare

    def on_handoff(self, decide: Handler) -> Handler:
        """Declare the function that decides, in place of the default, whether to accept a task that an agent offers.

        `decide(offer)` gets a `HandoffOffer`, is async or runs in a thread, and has 8 s. True accepts, False or a text
        (the reason) declines, and None leaves it to the default: accept with a free slot, and an input that fits.
        """
        self.handoff_policy = decide
        return decide

    def __repr__(self) -> str:
        return f"Agent({self.name!r}, capabilities={sorted(self._capabilities)})"


def _refusal(error: InputError) -> SetupError:
    return SetupError(error.sentence, **error.facts, at=_written_at())


def _written_at() -> str:
    """Return file and line of the user's declaration: those of the nearest caller outside of this module."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _called(handler: Callable[..., Any], shape: Signature) -> Callable[..., Any]:
    """Return the function that the runtime calls: the handler itself, wrapped if it yields or has dependencies."""
    called, context_name = handler, shape.context_name
    if shape.parts is not None:
        called, context_name = in_parts(handler, shape.parts, context_name), CONTEXT
    return with_dependencies(called, shape.dependencies, context_name) if shape.dependencies else called


def _features(features: Sequence[str] | str) -> tuple[str, ...]:
    names = tuple(sorted(arguments.texts("features", features)))
    if len(names) > MOST_FEATURES or any(_FEATURE.fullmatch(name) is None for name in names):
        fix = f"at most {MOST_FEATURES} names of fields, such as options.depth"
        arguments.refuse("features", "These are no features of an input", features, fix)
    return names


def _limit_seconds(timeout: Duration) -> float:
    limit = seconds(arguments.span("timeout", timeout))
    if not 0 < limit <= LONGEST_SECONDS:
        arguments.refuse("timeout", "A capability's timeout is above 0 and at most 7d", timeout, "split the work")
    return limit


def _where(handler: Callable[..., Any], *, process: bool) -> Where:
    if process:
        return Where.PROCESS
    on_loop = inspect.iscoroutinefunction(handler) or inspect.isasyncgenfunction(handler)
    return Where.LOOP if on_loop else Where.THREAD


def _described(spec: CapabilitySpec, handler: Callable[..., Any], shape: Signature) -> CapabilitySpec:
    return replace(
        spec,
        description=spec.description or _first_line(handler),
        input_schema=shape.input.schema,
        output_schema=shape.output.schema,
    )


def _batched(capability: Capability, policy: BatchPolicy | None) -> Capability:
    """Return a capability whose handler of lists is wrapped to take one task as well; unchanged if `policy` is None."""
    if policy is None:
        return capability
    handler = capability.handler
    try:
        checked_batch_handler(handler, process=capability.where is Where.PROCESS)
    except SetupError as error:
        error.facts |= {"handler": handler.__qualname__, "at": line_of(handler)}
        raise
    return replace(capability, handler=single_task_handler(handler), batch=policy, batch_handler=handler)


def _first_line(handler: Callable[..., Any]) -> str:
    return (inspect.getdoc(handler) or "").partition("\n")[0]


LEAST_BYTES = 1_000_000
MOST_TASKS = 1_000_000_000
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(kB|MB|GB|KiB|MiB|GiB)")
_UNIT_BYTES = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """The limits of a handler's process: how many tasks it runs, and its memory in bytes after each; None: no limit."""

    max_tasks: int | None = None
    max_bytes: int | None = None

    def last(self, tasks: int) -> bool:
        """Tell whether the next task is the last one of a process that has already run `tasks` of them."""
        return self.max_tasks is not None and tasks + 1 >= self.max_tasks

    def over(self, tasks: int, resident_bytes: int) -> bool:
        """Tell whether a process has run as many tasks as it may, or holds more memory than it may."""
        return (self.max_tasks is not None and tasks >= self.max_tasks) or (
            self.max_bytes is not None and resident_bytes > self.max_bytes
        )


def process_limits(max_tasks: int | None, max_memory: str | int | None, *, process: bool) -> ProcessLimits | None:
    """Return the checked limits of a capability's processes; None without any. `max_memory`: bytes, or as "512MB".

    Raises:
        InputError: when a value is outside its range, or the handler does not run in a process of its own.
    """
    for name, limit in (("max_tasks_per_process", max_tasks), ("max_memory", max_memory)):
        if limit is not None and not process:
            arguments.refuse(name, "Only a handler in a process of its own has this limit", limit, "process=True")
    if max_tasks is None and max_memory is None:
        return None
    tasks = None if max_tasks is None else arguments.whole("max_tasks_per_process", max_tasks, 1, MOST_TASKS)
    return ProcessLimits(tasks, None if max_memory is None else _bytes(max_memory))


def _bytes(max_memory: str | int) -> int:
    size = size_bytes(max_memory)
    if not isinstance(size, int) or isinstance(size, bool) or size < LEAST_BYTES:
        arguments.refuse("max_memory", "A memory is at least 1MB", max_memory, 'such as "512MB" or "1GiB"')
    return size


def size_bytes(size: Any) -> Any:
    """Return the bytes of a size such as "512MB"; anything else is returned as it is, for the caller to check."""
    match = _SIZE.fullmatch(size.strip()) if isinstance(size, str) else None
    return round(float(match[1]) * _UNIT_BYTES[match[2]]) if match is not None else size


_LIBRARIES = (str(Path(__file__).parents[1]), *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))
"""The folders of Coditect and of installed libraries, whose code is not the user's."""


def load_agents(target: str) -> tuple[Agent, ...]:
    """Return the `Agent` values of `path/to/file.py`, `package.module` or `package.module:name`.

    A file inside a package is imported under its package's name; the package's parent folder is put on `sys.path`.

    Raises:
        SetupError: when no agent is declared there, or the import fails; the error names file and line.
    """
    place, _, name = target.partition(":")
    module = _import(place)
    found = {key: value for key, value in vars(module).items() if isinstance(value, Agent)}
    if name:
        found = {key: value for key, value in found.items() if key == name}
    if not found:
        raise SetupError(
            "No Agent is declared there",
            target=target,
            fix="declare one at the top level: reviewer = Agent('reviewer')",
        )
    return tuple(dict.fromkeys(found.values()))


def load_agent(target: str) -> Agent:
    """Return the only agent that a file, a module, or `package.module:name` declares.

    Raises:
        SetupError: when no agent or more than one agent is declared there, or the import fails.
    """
    agents = load_agents(target)
    if len(agents) > 1:
        place = target.partition(":")[0]
        names = [key for key, value in vars(_import(place)).items() if isinstance(value, Agent)]
        raise SetupError(
            "Several agents are declared there; name one",
            target=target,
            names=names,
            fix=f"coditect agent run {place}:{names[0]}",
        )
    return agents[0]


def _import(place: str) -> ModuleType:
    path = Path(place)
    if place.endswith(".py") or "/" in place or path.name in ("", ".."):
        if not path.is_file() or path.suffix != ".py":
            raise SetupError(
                "There is no such Python file",
                path=place,
                fix="name a file as seen from this folder, or write an example: coditect init my-fleet",
            )
        place = _module_name(path.resolve())
    elif "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(place)
    except CoditectError as error:
        error.facts.setdefault("at", _line_of(error)[0])
        raise
    except (Exception, SystemExit) as error:
        at, line = _line_of(error)
        reason = f"{type(error).__name__}: {getattr(error, 'msg', '') or error}"
        raise SetupError("The agent cannot be imported", target=place, at=at, line=line, reason=reason) from error


def _line_of(error: BaseException) -> tuple[str, str]:
    """Return `file:line` and the source line of the innermost traceback frame in the user's own code."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}", (error.text or "").strip()
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith((*_LIBRARIES, "<"))]
    return (f"{own[-1].filename}:{own[-1].lineno}", own[-1].line or "") if own else ("", "")


def _module_name(path: Path) -> str:
    names = [path.stem]
    folder = path.parent
    while (folder / "__init__.py").is_file():
        names.append(folder.name)
        folder = folder.parent
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return ".".join(reversed(names))
