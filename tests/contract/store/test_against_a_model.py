"""Random transactions against a dictionary."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, ClassVar
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from chaos.simulated_store import Faults, SimulatedDatabase
from dispatcher.store.fdb import FdbDatabase
from dispatcher.store.keys import Space
from dispatcher.store.port import Database
from dispatcher.store.transaction import Transaction, read_counter, write_counter
from tests.contract.store.conftest import BACKENDS, MAKERS
from tests.fdb_stub import FdbStub

NAMES = st.binary(max_size=2) | st.sampled_from([b"\0", b"\xff", b"\0\xff", b"a", b"ab", b"b"])
VALUES = st.binary(max_size=4) | st.integers(-(2**63), 2**63 - 1).map(write_counter)
STEPS = st.one_of(
    st.tuples(st.just("get"), NAMES),
    st.tuples(st.just("set"), NAMES, VALUES),
    st.tuples(st.just("clear"), NAMES),
    st.tuples(st.just("clear_range"), NAMES, NAMES),
    st.tuples(st.just("add"), NAMES, st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.just("range"), NAMES, NAMES, st.integers(0, 3), st.booleans(), st.booleans()),
    st.tuples(st.just("many"), st.lists(NAMES, max_size=5)),
    st.tuples(st.just("ahead"), st.lists(NAMES, max_size=5), st.lists(st.tuples(NAMES, NAMES), max_size=4)),
    st.tuples(st.just("next"), st.lists(NAMES, max_size=5), st.lists(st.tuples(NAMES, NAMES), max_size=4)),
    st.tuples(st.just("ranges"), st.lists(st.tuples(NAMES, NAMES), max_size=4), st.integers(0, 3), st.booleans()),
)
Model = dict[bytes, bytes]


class Undone(Exception):
    pass


def in_model(model: Model, step: tuple[Any, ...]) -> object:
    match step:
        case ("get", name):
            return model.get(name)
        case ("set", name, value):
            model[name] = value
        case ("clear", name):
            model.pop(name, None)
        case ("clear_range", one, other):
            for name in [name for name in model if min(one, other) <= name < max(one, other)]:
                del model[name]
        case ("add", name, amount):
            old = int.from_bytes(model.get(name, b"")[:8], "little")
            model[name] = ((old + amount) % 2**64).to_bytes(8, "little")
        case ("range", one, other, limit, reverse, _):
            names = sorted((name for name in model if min(one, other) <= name < max(one, other)), reverse=reverse)
            return [(name, model[name]) for name in names][: limit or None]
        case ("many", names):
            return [model.get(name) for name in names]
        case ("ranges", ranges, limit, snapshot):
            return [in_model(model, ("range", *each, limit, False, snapshot)) for each in ranges]
    return None


def in_store(tr: Transaction, prefix: bytes, step: tuple[Any, ...]) -> object:
    match step:
        case ("get", name):
            return tr.get(prefix + name)
        case ("set", name, value):
            tr.set(prefix + name, value)
        case ("clear", name):
            tr.clear(prefix + name)
        case ("clear_range", one, other):
            tr.clear_range(prefix + min(one, other), prefix + max(one, other))
        case ("add", name, amount):
            tr.add(prefix + name, amount)
        case ("range", one, other, limit, reverse, snapshot):
            begin, end = prefix + min(one, other), prefix + max(one, other)
            reads = tr.snapshot if snapshot else tr
            pairs = reads.get_range(begin, end, limit=limit, reverse=reverse)
            return [(key.removeprefix(prefix), value) for key, value in pairs]
        case ("many", names):
            return tr.get_many([prefix + name for name in names])
        case ("ranges", ranges, limit, snapshot):
            reads = tr.snapshot if snapshot else tr
            found = reads.get_ranges([(prefix + min(each), prefix + max(each)) for each in ranges], limit=limit)
            return [[(key.removeprefix(prefix), value) for key, value in pairs] for pairs in found]
        case ("ahead" | "next" as when, names, ranges):
            announce = tr.read_ahead if when == "ahead" else tr.read_next
            between = [(prefix + min(each), prefix + max(each)) for each in ranges]
            announce([prefix + name for name in names], between, limit=len(names))
    return None


def counted(value: bytes | None) -> bytes:
    return write_counter(read_counter((value or b"")[:7]) + 1)


def count(tr: Transaction, key: bytes) -> None:
    tr.set(key, counted(tr.get(key)))


class AgainstADictionary(RuleBasedStateMachine):
    make: ClassVar[Callable[[Path], list[Database]]]
    """Two databases on the same keys, as two processes have them, where a backend can have several."""

    def __init__(self) -> None:
        super().__init__()
        self.prefix = Space((f"test-{uuid4().hex}",)).prefix + b"\x01"
        self.model: Model = {}
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.databases = self.runner.run(self._open())

    async def _open(self) -> list[Database]:
        return [await database.__aenter__() for database in type(self).make(Path(self.folder.name))]

    def teardown(self) -> None:
        for database in self.databases:
            self.runner.run(database.__aexit__(None, None, None))
        self.runner.close()
        self.folder.cleanup()

    @rule(steps=st.lists(STEPS, max_size=8), undone=st.booleans(), which=st.integers(0, 1))
    def transaction(self, steps: list[tuple[Any, ...]], undone: bool, which: int) -> None:
        model = dict(self.model)
        expected = [in_model(model, step) for step in steps]
        found: list[object] = []

        def body(tr: Transaction) -> None:
            found[:] = [in_store(tr, self.prefix, step) for step in steps]
            if undone:
                raise Undone

        async def run() -> None:
            try:
                await self.databases[which % len(self.databases)].run(body)
            except Undone:
                assert undone

        self.runner.run(run())
        assert found == expected
        if not undone:
            self.model = model

    @rule(names=st.lists(NAMES, min_size=2, max_size=6))
    def count_at_once(self, names: list[bytes]) -> None:
        """Concurrent read-modify-writes, which conflict wherever a backend can: none is lost."""

        async def run() -> None:
            async with asyncio.TaskGroup() as group:
                for name, database in zip(names, cycle(self.databases)):
                    group.create_task(database.run(partial(count, key=self.prefix + name)))

        self.runner.run(run())
        for name in names:
            self.model[name] = counted(self.model.get(name))

    @rule(read=NAMES, number=st.integers(0, 100))
    def count_what_was_written_beside_a_read(self, read: bytes, number: int) -> None:
        """A read and a write of one key at once, of which FoundationDB can commit both at one version; then a count."""
        one, other = self.databases[0], self.databases[-1]
        key, beside = self.prefix + read, self.prefix + b"beside"

        def look(tr: Transaction) -> None:
            tr.read_next([key], [(key, key + b"\0")])
            tr.set(beside, tr.get(key) or b"")

        async def run() -> None:
            for value in (write_counter(number), write_counter(number + 1)):
                await asyncio.gather(one.run(look), other.run(lambda tr: tr.set(key, value)))  # noqa: B023
                await one.run(partial(count, key=key))

        self.runner.run(run())
        self.model[read] = counted(write_counter(number + 1))
        self.model.pop(b"beside", None)
        self.runner.run(one.run(lambda tr: tr.clear(beside)))

    @invariant()
    def the_store_holds_what_the_model_holds(self) -> None:
        async def read() -> list[Any]:
            return await self.databases[-1].read(lambda tr: tr.get_range(self.prefix, self.prefix + b"\xff" * 4))

        pairs = self.runner.run(read())
        assert [(key.removeprefix(self.prefix), value) for key, value in pairs] == sorted(self.model.items())


FAULTS = Faults(conflict=0.2, too_old=0.05, unknown_lost=0.1, latency_seconds=(0.0, 0.0005))


def opened(backend: str, folder: Path) -> list[Database]:
    match backend:
        case "fdb-stub":
            stub = FdbStub()
            return [FdbDatabase(binding=stub), FdbDatabase(binding=stub)]
        case "fdb":
            return [MAKERS[backend](folder), MAKERS[backend](folder)]
        case "simulated with faults":
            return [SimulatedDatabase(faults=FAULTS, seed=7)]
    return [MAKERS[backend](folder)]


@pytest.mark.proof
@pytest.mark.parametrize("backend", [*BACKENDS, "simulated with faults"])
def test_every_backend_does_what_a_dictionary_does(backend: str) -> None:
    machine = type(f"Against{backend}", (AgainstADictionary,), {"make": staticmethod(partial(opened, backend))})

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=60 if backend in MAKERS else 15,
            stateful_step_count=12,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
