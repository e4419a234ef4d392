"""The FoundationDB adapter against a stub of its binding: codes, options, retries, and early begins."""

from __future__ import annotations

import ast
import asyncio
import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from coditect.errors import CoditectError
from dispatcher.store import errors
from dispatcher.store.errors import StoreUnavailable
from dispatcher.store.fdb import API_VERSION, FdbDatabase, FdbSettings, load_binding, translated
from dispatcher.store.fdb_backing import MOST_RANGES
from dispatcher.store.limits import RUN_SECONDS
from dispatcher.store.retry import EarlierTries
from dispatcher.store.transaction import KeyValue, Transaction, read_counter
from tests import fdb_stub
from tests.fdb_stub import FDBError, FdbStub

fdb = load_binding()

KEY = b"count"


def add_once(tr: Transaction, request: bytes) -> None:
    """Idempotent by a natural key, as every transaction function must be."""
    if tr.get(request) is None:
        tr.set(request, b"")
        tr.add(KEY, 1)


async def test_it_opens_the_named_cluster_with_the_api_version_of_the_binding_once_for_a_process() -> None:
    stub, settings = FdbStub(), FdbSettings(cluster_file="/etc/fdb.cluster")
    async with FdbDatabase(settings, binding=stub) as one, FdbDatabase(settings, binding=stub) as other:
        await one.run(lambda tr: tr.set(b"a", b"1"))
        assert await other.read(lambda tr: tr.get(b"a")) == b"1"

    assert (stub.version, stub.opened[0]) == (API_VERSION, "/etc/fdb.cluster")
    assert fdb.LATEST_API_VERSION == API_VERSION
    assert stub.options.chosen == []


@pytest.mark.parametrize(
    ("stub", "words"),
    [(FdbStub(has_library=False), ["client package", "Unable to locate"]), (FdbStub(version=710), ["already loaded"])],
    ids=["no library", "another API version"],
)
async def test_a_binding_that_cannot_be_used_is_a_matter_of_set_up(stub: FdbStub, words: list[str]) -> None:
    with pytest.raises(errors.StoreMisconfigured) as refused:
        await FdbDatabase(binding=stub).__aenter__()
    assert all(one in str(refused.value) for one in words)


async def test_a_cluster_that_does_not_answer_is_unavailable() -> None:
    stub = FdbStub()
    stub.failures.append(("read", 1031))
    with pytest.raises(errors.StoreUnavailable):
        await FdbDatabase(binding=stub).__aenter__()


@pytest.mark.parametrize("place", ["read", "commit", "committed"])
@pytest.mark.parametrize("code", [1007, 1009, 1020, 1021, 1037, 1039, 1213])
async def test_what_the_binding_repeats_is_repeated_to_one_effect(place: str, code: int) -> None:
    stub = FdbStub()
    async with FdbDatabase(binding=stub) as database:
        stub.failures.extend([(place, code)] * 2)

        await database.run(lambda tr: add_once(tr, b"request"))

        # A commit that was done and reported lost is found done by the repetition, which then writes nothing.
        assert stub.recovered == [code] * (1 if place == "committed" else 2)
        assert read_counter(await database.read(lambda tr: tr.get(KEY))) == 1


async def test_conflicts_and_other_repeats_are_counted_by_their_code() -> None:
    stub = FdbStub()
    async with FdbDatabase(binding=stub) as database:
        stub.failures.extend([("commit", 1020), ("commit", 1007), ("commit", 1020)])
        await database.run(lambda tr: tr.set(b"a", b""))
        stub.failures.append(("read", 1101))

        with pytest.raises(errors.StoreUnavailable):
            await database.run(lambda tr: tr.get(b"a"))

    assert database.repeats == {1020: 2, 1007: 1}


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (1031, errors.TransactionTimedOut),
        (2101, errors.TransactionTooLarge),
        (2102, errors.KeyTooLarge),
        (2103, errors.ValueTooLarge),
        (2004, errors.KeyOutsideRange),
        (2005, errors.InvertedRange),
        (1515, errors.StoreMisconfigured),
        (1501, errors.StoreFailed),
        (1101, errors.StoreUnavailable),
        (4100, errors.StoreUnavailable),
    ],
)
async def test_what_the_binding_gives_up_is_our_error(code: int, kind: type[CoditectError]) -> None:
    stub = FdbStub()
    async with FdbDatabase(binding=stub) as database:
        stub.failures.append(("commit", code))

        with pytest.raises(kind) as refused:
            await database.run(lambda tr: tr.set(b"a", b""))

    assert refused.value.facts["fdb_code"] == code
    assert isinstance(refused.value.__cause__, FDBError)


async def test_a_transaction_that_never_comes_through_ends_in_time() -> None:
    stub = FdbStub()
    async with FdbDatabase(FdbSettings(run_seconds=0.2), binding=stub) as database:
        stub.failures.extend([("commit", 1020)] * 1_000_000)

        with pytest.raises(errors.TransactionTimedOut):
            await database.run(lambda tr: tr.set(b"a", b""))


@pytest.mark.parametrize("canceled", [False, True])
async def test_the_loop_is_free_while_a_transaction_waits_also_canceled(canceled: bool) -> None:
    stub = FdbStub()
    async with FdbDatabase(binding=stub) as database:
        with stub.lock:  # as if the cluster took its time
            running = asyncio.create_task(database.run(lambda tr: tr.set(b"a", b"1")))
            await asyncio.wait({running}, timeout=0.1)
            if canceled:
                running.cancel()
                await asyncio.wait({running}, timeout=0.1)
            assert not running.done()
        with pytest.raises(asyncio.CancelledError) if canceled else nullcontext():
            await running
        assert await database.read(lambda tr: tr.get(b"a")) == b"1"


async def test_transaction_that_is_canceled_before_a_thread_has_it_is_not_run() -> None:
    stub, begun = FdbStub(), list[str]()
    async with FdbDatabase(FdbSettings(threads=1), binding=stub) as database:
        with stub.lock:
            first = asyncio.create_task(database.run(lambda tr: tr.set(b"a", b"1")))
            second = asyncio.create_task(database.run(lambda tr: begun.append("second")))
            await asyncio.wait({first, second}, timeout=0.1)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
        await first

    assert begun == []


def test_every_code_has_a_meaning_and_every_numbered_error_of_ours_is_mapped_from_its_number() -> None:
    meant = [translated(FDBError(code)) for code in range(1, 5000)]
    assert all(isinstance(one, CoditectError) and type(one) is not CoditectError for one in meant)

    tree = importlib.import_module("dispatcher.store.errors").__doc__ or ""
    numbered = re.findall(r"── (\w+) +(\d{4}) ", tree)
    assert len(numbered) == 9
    for name, code in numbered:
        assert type(translated(FDBError(int(code)))).__name__ == name


@pytest.mark.parametrize(
    ("read", "awaited"), [(Transaction.get_many, [b"a", b"b", b"c"]), (Transaction.read_ahead, [b"c", b"b", b"a"])]
)
async def test_what_is_read_at_once_is_under_way_before_the_first_answer_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, read: Callable[[Transaction, list[bytes]], object], awaited: list[bytes]
) -> None:
    stub, order = FdbStub(), list[object]()
    asked = fdb_stub._TransactionRead.get

    def get(reads: fdb_stub._TransactionRead, key: bytes) -> fdb_stub.Future:
        answer = asked(reads, key)
        order.append("asked")

        def waited_for() -> object:
            order.append(key)
            return answer.value

        return fdb_stub.Future(waited_for)

    monkeypatch.setattr(fdb_stub._TransactionRead, "get", get)
    async with FdbDatabase(binding=stub) as database:
        await database.run(lambda tr: read(tr, [b"a", b"b", b"c"]))

    assert order == ["asked"] * 3 + awaited


async def test_read_version_is_under_way_before_the_function_has_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    order, asked = list[tuple[str, bool]](), fdb_stub.Transaction.get_read_version

    def note(what: str) -> None:
        order.append((what, threading.current_thread() is threading.main_thread()))

    def get_read_version(transaction: fdb_stub.Transaction) -> fdb_stub.Future:
        note("asked")
        return asked(transaction)

    async with FdbDatabase(binding=FdbStub()) as database:
        monkeypatch.setattr(fdb_stub.Transaction, "get_read_version", get_read_version)
        await database.run(lambda _: note("runs"))

    assert order == [("asked", True), ("runs", False)]


AFTER = KEY + b"\1"


@pytest.mark.parametrize(
    ("written", "read", "tries"),
    [
        (KEY, None, 1),
        (KEY, lambda tr: tr.get(KEY), 2),
        (KEY, lambda tr: tr.get(KEY, snapshot=True), 1),
        (AFTER, lambda tr: tr.get(KEY), 1),
        (AFTER, lambda tr: tr.get_range(KEY, KEY + b"\xff"), 2),
        (AFTER, lambda tr: tr.get_range(KEY, KEY + b"\xff", limit=1), 1),
        (AFTER, lambda tr: tr.get_range(KEY, KEY + b"\xff", snapshot=True), 1),
        (KEY, lambda tr: tr.get_many([KEY, AFTER]), 2),
        (AFTER, lambda tr: tr.get_many([KEY, AFTER]), 2),
        (KEY, lambda tr: tr.snapshot.get_many([KEY, AFTER]), 1),
        (AFTER, lambda tr: tr.get_ranges([(KEY, KEY + b"\xff")]), 2),
        (AFTER, lambda tr: tr.get_ranges([(KEY, KEY + b"\xff")], limit=1), 1),
        (AFTER, lambda tr: tr.snapshot.get_ranges([(KEY, KEY + b"\xff")]), 1),
        (AFTER, lambda tr: tr.snapshot.get_many([KEY, AFTER]), 1),
        (KEY, lambda tr: tr.get_range(KEY, KEY + b"\xff", limit=1), 2),
        (KEY, lambda tr: tr.get_ranges([(KEY, KEY + b"\xff")], limit=1), 2),
        (b"d", lambda tr: tr.get_ranges([(b"d", b"d\xff")]), 2),
        (b"d", lambda tr: tr.snapshot.get_ranges([(b"d", b"d\xff")]), 1),
    ],
)
async def test_read_ahead_conflicts_late(
    written: bytes, read: Callable[[Transaction], object] | None, tries: int
) -> None:
    async with FdbDatabase(binding=FdbStub()) as database:
        await database.run(lambda tr: tr.set(KEY, b"0"))
        loop, begun = asyncio.get_running_loop(), list[int]()

        def body(tr: Transaction) -> None:
            tr.read_ahead([KEY], [(KEY, KEY + b"\xff")])
            begun.append(1)
            if len(begun) == 1:
                change = database.run(lambda other: other.set(written, b"1"))
                asyncio.run_coroutine_threadsafe(change, loop).result()
            if read is not None:
                read(tr)
            tr.set(b"other", b"1")

        await database.run(body)

    assert len(begun) == tries


async def test_what_was_read_ahead_is_read_anew_by_the_next_try() -> None:
    stub, values = FdbStub(), list[bytes | None]()
    async with FdbDatabase(binding=stub) as database, FdbDatabase(binding=stub) as other:
        loop = asyncio.get_running_loop()

        def body(tr: Transaction) -> None:
            tr.read_ahead([KEY])
            values.append(tr.get(KEY))
            if len(values) == 1:
                asyncio.run_coroutine_threadsafe(other.run(lambda tr: tr.set(KEY, b"1")), loop).result()
            tr.set(b"other", b"1")

        await database.run(body)

    assert values == [None, b"1"]


async def test_client_is_not_asked_again_for_what_was_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, get, get_range = list[bytes](), fdb_stub._TransactionRead.get, fdb_stub._TransactionRead.get_range

    def noted_get(reads: fdb_stub._TransactionRead, key: bytes) -> fdb_stub.Future:
        asked.append(key)
        return get(reads, key)

    def noted_range(reads: fdb_stub._TransactionRead, begin: bytes, end: bytes, *how: Any) -> list[fdb_stub.KeyValue]:
        asked.append(begin)
        return get_range(reads, begin, end, *how)

    ranges = [(AFTER + letter, AFTER + letter + b"\xff") for letter in (b"a", b"b", b"c", b"d")]

    def body(tr: Transaction) -> None:
        tr.read_ahead([KEY], ranges)
        for _ in range(2):
            assert tr.get(KEY) is None
            tr.get_range(*ranges[0])
            assert tr.get_many([KEY, KEY, b"other"]) == [None, None, b"1"]
            assert tr.get_ranges([*ranges, (b"other", b"other\xff")]) == [[], [], [], [], [(b"other", b"1")]]
        tr.set(b"other", b"2")
        tr.get_ranges(ranges)

    monkeypatch.setattr(fdb_stub._TransactionRead, "get", noted_get)
    monkeypatch.setattr(fdb_stub._TransactionRead, "get_range", noted_range)
    async with FdbDatabase(binding=FdbStub()) as database:
        await database.run(lambda tr: tr.set(b"other", b"1"))
        await database.run(body)

    begins = [begin for begin, _ in ranges]
    assert asked == [KEY, *begins, *[b"other"] * 4, *begins[:-MOST_RANGES]]


BEHIND = (KEY + b"\1", KEY + b"\xff")


def count(tr: Transaction) -> bytes | None:
    """Read a key, and a range beside it, write both, and announce that the next transaction does so, too."""
    tr.read_next([KEY], [BEHIND], limit=1)
    tr.read_ahead([KEY], [BEHIND], limit=1)
    tr.get_range(*BEHIND, limit=1)
    tr.set(b"last", tr.get(KEY) or b"")
    tr.set(KEY, (tr.get(KEY) or b"") + b"1")
    return tr.get(KEY)


@pytest.fixture
def stub() -> FdbStub:
    return FdbStub()


@pytest.fixture
async def database(stub: FdbStub, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FdbDatabase]:
    """A database whose next transaction has begun early, and has the count 11."""
    monkeypatch.setattr("dispatcher.store.fdb.EARLY_BEGIN_SECONDS", 60.0)
    monkeypatch.setattr("dispatcher.store.fdb.FRESH_SECONDS", 60.0)
    async with FdbDatabase(binding=stub) as opened:
        for _ in range(2):
            await opened.run(count)
        await asyncio.sleep(0)
        yield opened


@pytest.fixture
async def other(stub: FdbStub) -> AsyncIterator[FdbDatabase]:
    async with FdbDatabase(binding=stub) as opened:
        yield opened


async def test_announced_is_not_asked(stub: FdbStub, database: FdbDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[object]()
    for name in ("get", "get_range", "get_read_version"):
        monkeypatch.setattr(fdb_stub._TransactionRead, name, lambda _, *what: asked.append(what))

    def body(tr: Transaction) -> bytes | None:
        tr.read_ahead([KEY], [BEHIND], limit=1)
        tr.get_range(*BEHIND, limit=1)
        value = tr.get(KEY)
        tr.set(b"last", value or b"")
        return value

    assert (await database.run(body), asked) == (b"11", [])
    assert stub.disk.values[b"last"] == b"11"


async def is_early(database: FdbDatabase, stub: FdbStub) -> bool:
    """Tell whether the next transaction has begun early, by running it."""
    before = stub.versions_asked
    await asyncio.sleep(0)
    await database.run(lambda tr: tr.get(b"unwritten"))
    return stub.versions_asked == before


@pytest.mark.parametrize("keys", [(), (KEY,)])
@pytest.mark.parametrize(
    ("write", "value", "pairs"),
    [
        (lambda tr: tr.set(KEY, b"mine"), b"mine", [(KEY, b"mine"), (KEY + b"\1", b"")]),
        (lambda tr: tr.clear(KEY), None, [(KEY + b"\1", b"")]),
        (lambda tr: tr.clear_range(KEY, KEY + b"\xff"), None, []),
        (lambda tr: tr.set(KEY + b"\2", b"mine"), b"11", [(KEY, b"11"), (KEY + b"\1", b""), (KEY + b"\2", b"mine")]),
    ],
)
async def test_what_the_function_wrote_is_read_in_place_of_what_was_announced(
    stub: FdbStub,
    database: FdbDatabase,
    keys: tuple[bytes, ...],
    write: Callable[[Transaction], None],
    value: bytes | None,
    pairs: list[KeyValue],
) -> None:
    whole = (KEY, KEY + b"\xff")

    def announce(tr: Transaction) -> None:
        tr.read_next(keys, [whole])
        tr.set(KEY + b"\1", b"")

    def body(tr: Transaction) -> tuple[bytes | None, list[KeyValue]]:
        write(tr)
        return tr.get(KEY), tr.get_range(*whole)

    await database.run(announce)
    asked = stub.versions_asked
    await asyncio.sleep(0)

    assert await database.run(body) == (value, pairs)
    assert stub.versions_asked == asked


@pytest.mark.parametrize(
    ("key", "read"),
    [
        (KEY, lambda tr: tr.get(KEY)),
        (KEY, lambda tr: tr.snapshot.get(KEY)),
        (KEY, count),
        (b"elsewhere", lambda tr: tr.snapshot.get(b"elsewhere")),
        (b"elsewhere", lambda tr: tr.snapshot.get_many([b"elsewhere"])[0]),
        (BEHIND[0], lambda tr: tr.get_range(*BEHIND, limit=1)[0][1]),
        (BEHIND[0], lambda tr: tr.snapshot.get_range(*BEHIND, limit=1)[0][1]),
        (BEHIND[0], lambda tr: tr.snapshot.get_ranges([BEHIND])[0][0][1]),
    ],
)
async def test_what_another_process_changed_since_the_last_commit_is_seen(
    database: FdbDatabase, other: FdbDatabase, key: bytes, read: Callable[[Transaction], bytes | None]
) -> None:
    for value in (b"others", b"others too"):
        await other.run(lambda tr: tr.set(key, value))  # noqa: B023

        assert (await database.run(read) or b"").startswith(value)
        await database.run(count)
        await asyncio.sleep(0)
    assert database.repeats.keys() <= {1020}


async def test_what_was_committed_in_one_batch_with_us_is_seen(stub: FdbStub, database: FdbDatabase) -> None:
    stub.batched.append([("set", KEY, b"others")])
    await database.run(count)

    assert await database.run(count) == b"others1"


@pytest.mark.parametrize("read", [FdbDatabase.read, FdbDatabase.ask])
async def test_a_question_is_of_now(database: FdbDatabase, other: FdbDatabase, read: Callable[..., object]) -> None:
    await other.run(lambda tr: tr.set(KEY, b"others"))

    assert await read(database, lambda tr: tr.get(KEY)) == b"others"  # type: ignore[misc]
    assert database.repeats == {}


async def test_function_that_raised_on_old_state_runs_again(database: FdbDatabase, other: FdbDatabase) -> None:
    tries = list[int]()

    def refuse(tr: Transaction) -> str:
        tries.append(tr.earlier.count)
        if tr.get(KEY) == b"11":
            raise LookupError
        return "done"

    await other.run(lambda tr: tr.set(KEY, b"others"))

    assert await database.run(refuse) == "done"
    await database.run(lambda tr: tr.set(KEY, b"11"))
    with pytest.raises(LookupError):
        await database.run(refuse)
    assert tries == [0, 0, 0]


@pytest.mark.parametrize(
    ("place", "code", "tries", "waited"),
    [
        ("committed", 1021, [0, 1], [1021]),
        ("committed", 1039, [0, 1], [1039]),
        ("commit", 1007, [0, 0], []),
        ("commit", 1020, [0, 0], []),
        ("commit", 2101, [0, 0], []),
    ],
)
async def test_what_began_early_is_an_earlier_try_only_if_it_may_be_committed(
    stub: FdbStub, database: FdbDatabase, place: str, code: int, tries: list[int], waited: list[int]
) -> None:
    found = list[int]()

    def note(tr: Transaction) -> None:
        found.append(tr.earlier.count)
        tr.set(b"noted", b"")

    stub.failures.append((place, code))
    await database.run(note)

    assert (found, stub.recovered) == (tries, waited)
    assert database.repeats == {code: 1}


async def test_tries_before_one_that_began_early_count(database: FdbDatabase) -> None:
    tries = list[int]()

    def note(tr: Transaction) -> None:
        tries.append(tr.earlier.count)
        tr.set(b"noted", b"")

    await database._attempt(note, EarlierTries(count=2))

    assert tries == [2]


async def test_every_transaction_has_a_time_limit(stub: FdbStub, database: FdbDatabase, other: FdbDatabase) -> None:
    stub.begun.clear()
    await other.run(lambda tr: tr.set(KEY, b"others"))
    await database.run(count)

    limits = [milliseconds for one in stub.begun for name, milliseconds in one.options.chosen if name == "set_timeout"]
    assert len(limits) == len(stub.begun) == 2  # the one that began early was begun before
    assert all(0 < milliseconds <= RUN_SECONDS * 1000 for milliseconds in limits)


async def test_closed_database_begins_nothing_and_a_reopened_one_anew(stub: FdbStub, database: FdbDatabase) -> None:
    failures = list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    await database.run(count)
    await database.__aexit__(None, None, None)
    begun = len(stub.begun)
    await asyncio.sleep(0)

    assert (len(stub.begun), failures) == (begun, [])
    with pytest.raises(StoreUnavailable):
        await database.run(count)
    async with database:
        assert not await is_early(database, stub)


async def test_transactions_begin_early_after_one_that_failed_too(stub: FdbStub, database: FdbDatabase) -> None:
    def fail(_: Transaction) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await database.run(fail)
    await database.run(count)

    assert await is_early(database, stub)


async def test_rare_transactions_begin_late(
    stub: FdbStub, database: FdbDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic() + 61
    monkeypatch.setattr("dispatcher.store.fdb.time.monotonic", lambda: now)
    await database.run(count)
    seldom = await is_early(database, stub)
    await database.run(count)

    assert (seldom, await is_early(database, stub)) == (False, True)


@pytest.mark.parametrize("case", ["a commit of nothing", "EARLY_BEGIN_SECONDS", "FRESH_SECONDS", "only reads"])
async def test_no_transaction_begins_at_a_version_that_may_be_old(
    database: FdbDatabase, other: FdbDatabase, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    match case:
        case "a commit of nothing":
            await database.run(lambda tr: tr.set(b"unread", b""))  # takes the one that has begun
            await database.run(lambda tr: tr.read_next([KEY]))
        case "only reads":
            now = time.monotonic() + 61
            monkeypatch.setattr("dispatcher.store.fdb.time.monotonic", lambda: now)
            await database.read(lambda tr: tr.get(KEY))
        case _:
            monkeypatch.setattr(f"dispatcher.store.fdb.{case}", -1.0)
            await database.run(count)
    await asyncio.sleep(0)
    await other.run(lambda tr: tr.set(KEY, b"others"))
    assert await database.run(count) == b"others1"
    assert database.repeats == {}


async def test_no_transaction_begins_early_while_another_runs(database: FdbDatabase, other: FdbDatabase) -> None:
    loop = asyncio.get_running_loop()

    def around(tr: Transaction) -> bytes | None:
        asyncio.run_coroutine_threadsafe(database.run(count), loop).result()
        return tr.get(b"unwritten")

    await database.run(lambda tr: tr.get(b"unwritten"))  # takes the one that has begun
    await database.run(around)
    await asyncio.sleep(0)
    await other.run(lambda tr: tr.set(KEY, b"others"))

    assert await database.run(count) == b"others1"
    assert database.repeats == {}


def _source(module: str) -> ast.Module:
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    return ast.parse(Path(found.origin).read_text(encoding="utf-8"))


IMPL = _source("fdb.impl")
OPTIONS = importlib.import_module("fdb.fdboptions")


def _parameters(function: ast.FunctionDef) -> list[str]:
    return [argument.arg for argument in function.args.args]


def _methods(name: str) -> dict[str, list[str]]:
    """Of a class of the binding and of those that it inherits from within it."""
    classes = {node.name: node for node in IMPL.body if isinstance(node, ast.ClassDef)}
    found: dict[str, list[str]] = {}
    for base in classes[name].bases:
        if isinstance(base, ast.Name) and base.id in classes:
            found |= _methods(base.id)
    return found | {one.name: _parameters(one) for one in classes[name].body if isinstance(one, ast.FunctionDef)}


@pytest.mark.parametrize("stub", [fdb_stub._TransactionRead, fdb_stub.Transaction])
def test_the_stub_s_transactions_have_the_methods_of_the_binding_s(stub: type) -> None:
    real = _methods(stub.__name__.lstrip("_"))
    mutations = {name.lower() for name in OPTIONS.MutationType}
    public = [
        (name, method)
        for name, method in inspect.getmembers(stub, inspect.isfunction)
        if not name.startswith("_") and name != "view"
    ]

    assert {"get", "get_range", "get_read_version"} <= {name for name, _ in public}
    for name, method in public:
        named = list(inspect.signature(method).parameters)
        assert named == real.get(name, ["self", "key", "param"] if name in mutations else None) or (
            name == "on_error" and real[name] == ["self", "error"]
        ), name


def test_the_binding_has_the_options_that_we_choose() -> None:
    transaction = {f"set_{name.lower()}" for name in OPTIONS.TransactionOption}

    assert "set_timeout" in transaction
    assert OPTIONS.StreamingMode["want_all"][0] == fdb_stub.StreamingMode.want_all


def test_the_module_has_the_functions_of_the_stub() -> None:
    opened = [node for node in IMPL.body if isinstance(node, ast.FunctionDef) and node.name == "open"]

    assert _parameters(opened[0])[0] == next(iter(inspect.signature(FdbStub().open).parameters)) == "cluster_file"
    assert list(inspect.signature(fdb.api_version).parameters) == ["ver"]
    assert "create_transaction" in _methods("Database")
    assert {"FDBError", "KeyValue", "Value"} <= {node.name for node in IMPL.body if isinstance(node, ast.ClassDef)}


def run(program: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)


def test_binding_needs_no_native_library_and_leaves_no_importer_behind() -> None:
    run(
        "import sys; from dispatcher.store.fdb import load_binding; load_binding(); import fdb.subspace_impl; "
        "assert all(hasattr(finder, 'find_spec') for finder in sys.meta_path)"
    )


def test_dispatcher_on_another_store_needs_no_binding_and_one_on_foundationdb_says_how_to_install_it() -> None:
    run(
        "import sys; sys.modules['fdb'] = None\n"
        "import dispatcher\n"
        "from coditect.errors import SetupError, install_command\n"
        "from dispatcher.store.fdb import FdbDatabase\n"
        "try: FdbDatabase()\n"
        "except SetupError as error: assert install_command('fdb') in str(error), error\n"
        "else: raise AssertionError"
    )
