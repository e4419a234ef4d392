"""A store on which every transaction function runs twice: in vain and as in another thread first, then for good.

A store may do so whenever it likes: after a conflict, when the answer to a commit was lost, in whichever thread is
free. So a function touches nothing but `tr`, and says by what it returns what else is to be done. Here the simulated
store runs each function on a transaction that is thrown away, and then on the one that it commits. What a function does
besides shows:

* a value of the dispatcher that the function can reach is changed by the run that was in vain;
* it returns, raises or writes something else the second time;
* it needs the thread of the event loop.

Every test of the store, the layers, the dispatcher and `TestFleet` runs so (`ROOMS`), and a few seeds of the simulation
among them, but for those with the mark `once`: their own functions keep count of their runs. A find that a loop of the
dispatcher heals fails the test at its end. What one test runs again and again is run twice at first, then now and then.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any, TypeVar

import pytest

from chaos import simulated_store
from chaos.recorder import RecordedDatabase
from chaos.simulated_store import SimulatedDatabase, View
from dispatcher import program
from dispatcher.store.retry import EarlierTries
from dispatcher.store.transaction import Transaction, call

Result = TypeVar("Result")
Body = Callable[[Transaction], Result]

ROOMS = (
    "contract/store",
    "unit/client",
    "unit/dispatcher",
    "unit/layers",
    "unit/store",
    "unit/testing",
    "workflow/patterns",
)
"""Folders of tests whose transaction functions run twice, with all that is below them."""
MOST_LOOKED_AT = 100
"""Values that the function can reach, the nearest first."""
FIRST_FEW = 8
"""Of a collection these are looked at, and how many there are."""
FIRST_RUNS, THEN_EVERY = 1, 30
"""Of the runs of one function in a test the first ones are made twice, and one in so many after them."""
PRODUCT = ("dispatcher.", "chaos.", "coditect.model.")
RECORDER = ("chaos.recorder.", "chaos.simulated_store.", "dispatcher.store.")
"""A history of what was committed has every try in it; the store counts its own."""


def runs_twice(file: Path) -> bool:
    """Whether the transaction functions of the tests in `file` run twice."""
    return any(folder.as_posix().endswith(ROOMS) for folder in file.parents)


class Impure(AssertionError):
    """A transaction function touches more than `tr`."""


@contextmanager
def every_function_runs_twice() -> Iterator[list[Impure]]:
    """Every simulated store runs its functions twice, also as that of a `TestFleet`; gives all finds, healed or not."""
    run, recorded = SimulatedDatabase.run, RecordedDatabase.run
    found, runs = list[Impure](), Counter[object]()
    with pytest.MonkeyPatch.context() as patched:

        def twice(database: SimulatedDatabase, body: Body[Result]) -> Body[Result]:
            runs[code := _code(body)] += 1
            if runs[code] > FIRST_RUNS and runs[code] % THEN_EVERY:
                return body
            clock = database._now or asyncio.get_running_loop().time

            def both(tr: Transaction) -> Result:
                chance = random.Random()
                chance.setstate(database._chance.getstate())
                before = [*_state(body)]
                earlier = EarlierTries(tr.earlier.count, tr.earlier.slow)
                with _as_in_another_thread() as away:
                    vain = away.run(_Run.in_vain, database, body, clock, chance, earlier)
                try:
                    if changed := [*_differing(before, [*_state(body)])]:
                        raise Impure(f"{body} changed what is not in the store: {changed[:3]}")
                    return vain.same(body, tr)
                except Impure as impure:
                    found.append(impure)
                    raise

            return both

        async def run_twice(database: SimulatedDatabase, body: Body[Result]) -> Result:
            doubled = f"{body.__module__}.".startswith(RECORDER[0])  # the body in it is, see below
            return await run(database, body if doubled else twice(database, body))

        async def run_twice_recorded(database: RecordedDatabase, body: Body[Result]) -> Result:
            inner = database._database
            return await recorded(database, twice(inner, body) if isinstance(inner, SimulatedDatabase) else body)

        patched.setattr(SimulatedDatabase, "run", run_twice)
        patched.setattr(program, "MemoryDatabase", simulated_store.SimulatedDatabase)  # that of a `TestFleet`
        patched.setattr(RecordedDatabase, "run", run_twice_recorded)
        yield found


@contextmanager
def _as_in_another_thread() -> Iterator[Context]:
    """No event loop runs and no context variable is set; a real thread would take ten times as long."""
    loop = asyncio.get_running_loop()
    asyncio._set_running_loop(None)
    try:
        yield Context()
    finally:
        asyncio._set_running_loop(loop)


def _code(body: object) -> object:
    """What the function and those that it wraps are made of, which is the same for each of its runs."""
    while isinstance(body, partial):
        body = body.func
    function = getattr(body, "__func__", body)
    if not isinstance(function, FunctionType):
        return type(body)
    cells = (cell.cell_contents for cell in function.__closure__ or ())
    return function.__code__, *(_code(one) for one in cells if isinstance(one, FunctionType | MethodType | partial))


@dataclass
class _Run:
    """What a function did with a transaction."""

    writes: list[Any]
    result: Any
    error: BaseException | None
    aging: bool

    @classmethod
    def in_vain(
        cls,
        database: SimulatedDatabase,
        body: Body[Any],
        clock: Callable[[], float],
        chance: random.Random,
        earlier: EarlierTries,
    ) -> _Run:
        low, high = database.faults.read_seconds
        view = View(database.disk, (lambda: low + (high - low) * chance.random()) if high else None)
        tr = Transaction(view, now=lambda: clock() + view.waited_seconds, earlier=earlier)
        return cls.of(lambda: call(body, tr), view.mutations, tr)

    @classmethod
    def of(cls, run: Callable[[], Any], writes: list[Any], tr: Transaction) -> _Run:
        result = error = None
        try:
            result = run()
        except BaseException as raised:  # noqa: BLE001  # it is compared, and raised again
            error = raised
        return cls(writes, result, error, tr.is_aging)

    def same(self, body: Body[Result], tr: Transaction) -> Result:
        """Runs it again. Raises: Impure; what it raises."""
        done = _Run.of(lambda: body(tr), tr._backing.mutations, tr)  # type: ignore[attr-defined]
        if not self.aging and not done.aging:  # what takes long may leave more to others
            if self.writes != done.writes:
                raise Impure(f"{body} wrote {self.writes}, and then {done.writes}") from self.error
            if not _alike(self.error, done.error) or not _alike(self.result, done.result):
                told = (self.result, self.error, done.result, done.error)
                raise Impure(f"{body} returned {told[0]!r} {told[1]!r}, and then {told[2]!r} {told[3]!r}")
        if done.error is not None:
            raise done.error
        result: Result = done.result
        return result


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, BaseException):
        return type(one) is type(other) and str(one) == str(other)
    return bool(one == other) or not any(_differing([*_state(one)], [*_state(other)]))


def _differing(before: list[Any], after: list[Any]) -> Iterator[tuple[Any, Any]]:
    return (pair for pair in zip_longest(before, after) if pair[0] is not pair[1] and pair[0] != pair[1])


def _state(body: object) -> Iterator[Any]:
    """What the function can reach of the dispatcher's values."""
    waiting, seen = deque([body]), set[int]()
    while waiting and len(seen) < MOST_LOOKED_AT:
        one = waiting.popleft()
        if isinstance(one, str | bytes | int | float | None):
            yield one
        elif id(one) not in seen:
            seen.add(id(one))
            yield type(one)
            waiting.extend(_parts(one))


def _parts(one: Any) -> Iterator[Any]:
    kind = type(one).__module__ + "."
    if isinstance(one, partial):
        yield from (one.func, one.args, one.keywords)
    elif isinstance(one, MethodType):
        yield from (one.__self__, one.__func__)
    elif isinstance(one, FunctionType):
        cells = [cell.cell_contents for cell in one.__closure__ or ()]
        ours = f"{one.__module__}.".startswith(PRODUCT) and not f"{one.__module__}.".startswith(RECORDER)
        yield from (each for each in cells if ours or callable(each) or type(each).__module__.startswith(PRODUCT))
    elif kind.startswith(PRODUCT) and not kind.startswith(RECORDER):
        names = (name for base in type(one).__mro__ for name in getattr(base, "__slots__", ()))
        yield from (getattr(one, name, None) for name in names)
        yield from getattr(one, "__dict__", {}).values()
    elif isinstance(one, Mapping):
        yield len(one)
        for key, value in islice(one.items(), FIRST_FEW):
            yield from (key, value)
    elif isinstance(one, list | tuple | deque | Set):
        yield len(one)
        yield from islice(one, FIRST_FEW)
