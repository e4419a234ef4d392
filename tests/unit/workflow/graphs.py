"""Random definitions whose nodes hold together, and shorthands for small ones."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from coditect.model.capability import Priority
from coditect.model.retry import Retry
from coditect.workflow.definition import (
    LEAST_HEARTBEAT_MS,
    After,
    Approval,
    AwaitSignal,
    Call,
    Definition,
    Each,
    Node,
    OnFailure,
    OnTimeout,
    SubWorkflow,
    WaitFor,
    WaitUntil,
)
from tests.unit.model.strategies import capabilities, json_values

expressions = st.sampled_from(["input.list", "input", "length(input.list) > `2`", "input.a || input.b"])
keys = st.text(max_size=8).filter(lambda key: not key.startswith("$"))
plain_values = json_values.filter(lambda value: "$" not in repr(value))
templates = st.recursive(
    plain_values | expressions.map(lambda text: {"$from": text}) | json_values.map(lambda value: {"$literal": value}),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=6,
).filter(lambda value: value is not None)  # fmt: skip
periods_ms = st.integers(1, 10**10)
retries = st.builds(
    Retry, max_attempts=st.integers(1, 1_000), first=st.sampled_from(["100ms", "1s"]), cap=st.sampled_from(["1m", "1h"])
)
calls = st.builds(
    Call,
    capability=capabilities,
    input=st.none() | templates,
    priority=st.sampled_from(Priority),
    timeout_ms=st.none() | periods_ms,
    start_within_ms=st.none() | periods_ms,
    deadline_ms=st.none() | periods_ms,
    heartbeat_ms=st.none() | st.integers(LEAST_HEARTBEAT_MS, 10**10),
    retry=st.none() | retries,
    compensate=st.none() | capabilities,
)
plain_calls = st.just(Call("some.work"))
questions = st.text(min_size=1, max_size=60).filter(lambda text: bool(text.strip()))
instants = st.sampled_from(["2026-12-24T08:00:00Z", "2026-12-24T08:00:00.250+01:00"])
works = (
    calls
    | st.builds(Each, calls, expressions, st.integers(1, 10_000))
    | st.builds(Approval, questions, st.none() | periods_ms, st.sampled_from(OnTimeout))
    | st.builds(WaitFor, periods_ms)
    | st.builds(WaitUntil, instants | expressions.map(lambda text: {"$from": text}))
    | st.builds(AwaitSignal, st.sampled_from(["go", "paid.in-full"]), st.none() | periods_ms)
    | st.builds(SubWorkflow, st.just("flow"), st.none() | templates, st.none() | retries, st.none() | capabilities)
)


@st.composite
def definitions(draw: st.DrawFn, *, most: int = 8, work: st.SearchStrategy[Any] = works) -> Definition:
    """Each node comes after some of those before it; then they are shuffled."""
    nodes: list[Node] = []
    for number in range(draw(st.integers(1, most))):
        names = draw(st.lists(st.sampled_from(range(number)), unique=True, max_size=4)) if nodes else []
        after = tuple(After(f"n{one}", draw(st.sampled_from(OnFailure))) for one in names)
        joins: st.SearchStrategy[Any] = st.sampled_from(["all", "any"]) | (
            st.integers(1, len(after)) if after else st.nothing()
        )
        nodes.append(Node(f"n{number}", draw(work), after, draw(joins), draw(st.none() | expressions)))
    description = draw(st.text(max_size=40))
    return Definition("flow", tuple(draw(st.permutations(nodes))), description)


def node(name: str, *after: str | After, **more: Any) -> Node:
    """A node that does something, after others."""
    work = more.pop("work", Call("some.work"))
    return Node(name, work, tuple(one if isinstance(one, After) else After(one) for one in after), **more)


def flow(*nodes: Node) -> Definition:
    """A definition of these nodes."""
    return Definition("flow", nodes)
