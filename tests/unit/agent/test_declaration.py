"""What a decorator is given: it works as documented, or the import ends with one error that names line and fix."""

from __future__ import annotations

import functools
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from coditect import Agent, CallNext, Context, Depends, MiddlewareContext, PlainContext, Retry, Strategy
from coditect.agent.program import CAPABILITIES_AT_ONCE, publish_window, topology
from coditect.broker.topology import Topology, base_topology, capability_queues
from coditect.errors import SetupError
from coditect.model.duration import seconds
from coditect.model.ids import AgentId
from coditect.settings.settings import Settings

ANYTHING = some.one_of(
    some.text(max_size=20),
    some.integers(-5, 2_000),
    some.floats(),
    some.booleans(),
    some.none(),
    some.binary(max_size=5),
    some.timedeltas(),
    some.lists(some.one_of(some.text(max_size=5), some.integers()), max_size=3),
    some.sets(some.text(max_size=5), max_size=3),
    some.sampled_from([*Strategy, "Least_Busy", "5m", "8d", Retry(), Retry(on=(OSError,)), object(), len, Agent]),
)
PARAMETERS = ("name", "timeout", "retry", "process", "description", "tags", "cost", "strategy")


def documented(parameter: str, asked: Any, agent: Agent) -> bool:
    """Whether the declared capability is what the documentation says of such a value."""
    (made,) = agent.capabilities
    expected: dict[str, Callable[[], object]] = {
        "name": lambda: asked,
        "timeout": lambda: seconds(asked) or "above 0",
        "retry": lambda: Retry(max_attempts=asked) if type(asked) is int else asked or Retry(),
        "process": lambda: asked if isinstance(asked, bool) else "a truth value",
        "description": lambda: asked or "Works.",
        "tags": lambda: frozenset([asked] if isinstance(asked, str) else asked),
        "cost": lambda: asked if not isinstance(asked, bool) and asked >= 0 else "a number",
        "strategy": lambda: asked if asked is None else str(asked).lower(),
    }
    found = {
        "name": made.name,
        "timeout": made.spec.timeout_seconds,
        "retry": made.retry,
        "process": made.where.value == "process",
        "description": made.spec.description,
        "tags": made.spec.tags,
        "cost": made.spec.cost,
        "strategy": made.spec.strategy,
    }
    return found[parameter] == expected[parameter]()


@given(parameter=some.sampled_from(PARAMETERS), asked=ANYTHING)
def test_a_declaration_works_as_documented_or_its_error_names_line_and_parameter(parameter: str, asked: Any) -> None:
    agent = Agent("any")
    given_name = {"name": "any.work"} | {parameter: asked}

    def handler(task: int) -> None:
        """Works."""

    try:
        agent.capability(**given_name)(handler)
    except SetupError as error:
        assert str(error.facts["at"]).startswith(__file__)
        assert error.facts.get("fix") or parameter == "name"
        assert agent.capabilities == ()
    else:
        assert documented(parameter, asked, agent)


@given(parameter=some.sampled_from(["name", "version", "slots", "reserve", "tags", "description"]), asked=ANYTHING)
def test_an_agent_is_as_documented_or_its_error_names_line_and_parameter(parameter: str, asked: Any) -> None:
    try:
        agent = Agent(**{"name": "any"} | {parameter: asked})
    except SetupError as error:
        assert (error.facts["parameter"], str(error.facts["at"]).startswith(__file__)) == (parameter, True)
        assert error.facts["fix"]
    else:
        expected = frozenset([asked] if isinstance(asked, str) else asked) if parameter == "tags" else asked
        assert getattr(agent, parameter) == expected
        assert not isinstance(asked, bool)


def plain(task: int) -> int:
    return task


def with_context(task: int, ctx: Context) -> int:
    return task


def maybe(task: int, anything: Context | None = None) -> int:
    return task


def unannotated(task, ctx):  # type: ignore[no-untyped-def]
    return task


@pytest.mark.parametrize(
    ("handler", "wants"),
    [(plain, False), (with_context, True), (maybe, True), (unannotated, True), (functools.partial(plain), False)],
)
def test_a_handler_takes_the_input_and_perhaps_the_context(handler: Any, wants: bool) -> None:
    agent = Agent("right")

    agent.capability("right.one")(handler)

    assert agent.capabilities[0].signature.wants_context is wants


def two(a: int, b: int) -> None: ...
def two_unannotated(a, b): ...  # type: ignore[no-untyped-def]
def method(self, task): ...  # type: ignore[no-untyped-def]
def default(task: int, limit: int = 5) -> None: ...
def only_context(ctx: Context) -> None: ...
def by_keyword(task: int, *, ctx: Context) -> None: ...
def starred(*tasks: int) -> None: ...
def keywords(**tasks: int) -> None: ...
def no_type(task: [int]) -> None: ...  # type: ignore[valid-type]
def not_a_type(task: 5) -> None: ...  # type: ignore[valid-type]
def unknown(task: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821
def unfit(task: threading.Lock) -> None: ...
def generator(task: int) -> int:  # type: ignore[misc]
    yield task


async def generating(task: int) -> list[int]:  # type: ignore[misc]
    yield task


@pytest.mark.parametrize("process", [False, True])
@pytest.mark.parametrize(
    "handler",
    [
        two, two_unannotated, method, default, only_context, by_keyword, starred, keywords, no_type, not_a_type,
        unknown, unfit, generator, generating, int, 7, None, "handler",
    ],
)  # fmt: skip
def test_what_is_no_handler_is_refused_where_it_stands(handler: Any, process: bool) -> None:
    agent = Agent("wrong")

    with pytest.raises(SetupError) as raised:
        agent.capability("wrong.one", process=process)(handler)

    assert agent.capabilities == ()
    assert raised.value.facts["fix"]
    line = getattr(getattr(handler, "__code__", None), "co_firstlineno", None)
    assert raised.value.facts["at"] == (f"{__file__}:{line}" if line else "")


class Pool: ...


def circle(inner: int) -> int:
    return inner


circle.__defaults__ = (Depends(circle),)


def needs_unknown(other: int) -> str:
    return ""


def nothing_said(): ...  # type: ignore[no-untyped-def]
def alias() -> list[int]: ...  # type: ignore[empty-body]
def unprovided(task: int, ctx: Context, other: int) -> None: ...
def of_unprovided(task: int, other: str = Depends(needs_unknown)) -> None: ...
def circular(task: int, outer: int = Depends(circle)) -> None: ...
def plain_batch(tasks: list[int]) -> list[int]: ...  # type: ignore[empty-body]
async def batch(tasks: list[int]) -> list[int]: ...  # type: ignore[empty-body]
async def no_list(task: int) -> list[int]: ...  # type: ignore[empty-body]
async def no_lists(tasks: list[int]) -> int: ...  # type: ignore[empty-body]
async def waiting(task: int, ctx: PlainContext) -> None: ...
async def one_parameter(ctx: MiddlewareContext) -> None: ...
async def exchanged(call_next: CallNext, ctx: MiddlewareContext) -> None: ...
async def awaits(agent: Agent) -> None: ...
async def yields(agent: Agent) -> AsyncIterator[None]:
    yield


async def yields_bytes(task: int) -> AsyncIterator[bytes]:
    yield b"x"


async def yields_batch(tasks: list[int]):  # type: ignore[no-untyped-def]
    yield tasks


@asynccontextmanager
async def without_agent() -> AsyncIterator[None]:
    yield


Declare = Callable[[Agent], object]


def capability(handler: Any, **fields: Any) -> Declare:
    return lambda agent: agent.capability("wrong.one", **fields)(handler)


def providers(*provided: Any) -> Declare:
    return lambda agent: [agent.provider(function) for function in provided]


def agent_with(**fields: Any) -> Declare:
    return lambda _: Agent("wrong", **fields)


def middleware(wrong: Any) -> list[Declare]:
    """The two ways in which middleware is declared."""
    return [lambda agent: agent.middleware(wrong), agent_with(middleware=[wrong])]


RATES = ("fast", "0/s", "10/d", "10", "-1/s", "1.5/s", 10, ("10/s", 3))
LIMITS = ("{input.repo}", ("{input.repo}", 0), ("{repo}", 1), ("{input.repo", 1), (7, 1))
LIFESPANS = (without_agent, yields, awaits, "open", 7, object())
REFUSED = {
    "takes and returns lists": [capability(no_list, batch=2), capability(no_lists, batch=2)],
    "asyncio.to_thread": [capability(plain_batch, batch=2), capability(batch, batch=2, process=True)],
    r"Agent\(slots=9\)": [capability(batch, batch=8)],
    "parameter='batch'": [capability(batch, batch=0)],
    "at most 60 s": [capability(batch, batch=2, within="2m")],
    "batch=100": [capability(batch, within="1s")],
    "AsyncIterator": [capability(generating)],
    "JSON": [capability(yields_bytes)],
    "this one yields": [capability(yields_batch, batch=2)],
    "process=True": [capability(plain, max_tasks_per_process=3), capability(plain, max_memory="512MB")],
    "parameter='max_tasks_per_process'": [capability(plain, process=True, max_tasks_per_process=0)],
    "512MB": [capability(plain, process=True, max_memory="much")],
    "at least 1MB": [capability(plain, process=True, max_memory=most) for most in (1, True)],
    "parameter='rate'.*100/m": [capability(plain, rate=rate) for rate in RATES],
    "parameter='concurrency'": [capability(plain, concurrency=limit) for limit in LIMITS],
    "must not wait.*ctx: Context": [capability(waiting)],
    "other.*Depends": [capability(unprovided), capability(of_unprovided)],
    "by the type": [providers(nothing_said), providers(alias), providers(Pool, Pool)],
    "async def middleware": [*middleware(7), *middleware(lambda ctx, call_next: None)],
    "the context and the next call": [*middleware(exchanged), *middleware(one_parameter)],
    "parameter='lifespan'": [agent_with(lifespan=lifespan) for lifespan in LIFESPANS],
}


@pytest.mark.parametrize(("message", "declarations"), REFUSED.items(), ids=REFUSED)
def test_wrong_declaration_is_refused_with_its_line_and_the_fix(message: str, declarations: list[Declare]) -> None:
    for declare in declarations:
        with pytest.raises(SetupError, match=message) as refused:
            declare(Agent("wrong"))
        assert str(refused.value.facts["at"]).startswith(__file__)
        assert refused.value.facts["fix"]


def test_dependency_that_is_no_function_or_depends_on_itself_is_refused() -> None:
    with pytest.raises(SetupError, match="A provider is a function"):
        Depends("open")  # type: ignore[arg-type] # on purpose
    with pytest.raises(SetupError, match="circle"):
        capability(circular)(Agent("wrong"))


def test_a_decorator_without_a_name_or_with_the_name_of_another_is_refused() -> None:
    agent = Agent("wrong")
    agent.capability("right.one")(plain)

    with pytest.raises(SetupError, match="named by a text"):
        agent.capability(plain)  # type: ignore[arg-type]
    with pytest.raises(SetupError, match="once"):
        agent.capability("right.one")


@pytest.mark.parametrize("on", ["ValueError", (ValueError, 3), ValueError(), object])
def test_what_is_no_exception_is_not_tried_again(on: Any) -> None:
    with pytest.raises(Exception, match="no exception"):
        Retry(on=on)


@pytest.mark.parametrize(("topic", "listener"), [("", plain), (5, plain), (None, plain), ("news", 5)])
def test_what_is_no_listener_is_refused(topic: Any, listener: Any) -> None:
    with pytest.raises(SetupError):
        Agent("wrong").on_broadcast(topic)(listener)


@pytest.mark.parametrize(
    ("declare", "parameter", "fix"),
    [
        (lambda: Agent("x").capability("a.b", retries=3), "retries", "did you mean retry?"),  # type: ignore[call-arg]
        (lambda: Agent("x").capability("a.b", max_retries=3), "max_retries", "did you mean retry?"),  # type: ignore[call-arg]
        (lambda: Agent("x").capability("a.b", time_out="1s"), "time_out", "did you mean timeout?"),  # type: ignore[call-arg]
        (lambda: Agent("x", slot=3), "slot", "did you mean slots?"),  # type: ignore[call-arg]
    ],
)
def test_misspelled_parameter_is_refused_with_the_nearest_one(
    declare: Callable[[], object], parameter: str, fix: str
) -> None:
    with pytest.raises(SetupError) as refused:
        declare()

    assert (refused.value.facts["parameter"], refused.value.facts["fix"]) == (parameter, fix)
    assert str(refused.value.facts["at"]).startswith(__file__)


AGENT_ID = AgentId("many-1")


async def nothing(_task: str) -> None:
    """Do nothing."""


def agent(capabilities: int) -> Agent:
    many = Agent("many", version="1.0.0")
    for number in range(capabilities):
        many.capability(f"work.n{number}")(nothing)
    return many


@pytest.mark.parametrize(
    "capabilities", [1, CAPABILITIES_AT_ONCE - 1, CAPABILITIES_AT_ONCE, 2 * CAPABILITIES_AT_ONCE + 1]
)
def test_agent_declares_what_it_shares_in_steps_of_a_bounded_size(capabilities: int) -> None:
    steps = list(topology(agent(capabilities)))

    whole = base_topology()
    for number in range(capabilities):
        whole += capability_queues(f"work.n{number}")
    most = CAPABILITIES_AT_ONCE * len(capability_queues("any").queues) + len(base_topology().queues)
    assert sum(steps, Topology()) == whole
    assert all(len(step.queues) <= most for step in steps)


@pytest.mark.parametrize(("slots", "published"), [(8, 500), (242, 500), (243, 502), (500, 1_016)])
def test_no_reply_of_an_agent_waits_for_the_confirm_of_another(slots: int, published: int) -> None:
    own = Agent("many", version="1.0.0", slots=slots)
    assert publish_window(own, Settings()) == published
    assert publish_window(agent(1), Settings(slots=slots)) == published
