"""The FoundationDB adapter against a stub of its binding: codes, options, the retry loop."""

from __future__ import annotations

import asyncio
import importlib
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest

from coditect.errors import CoditectError
from dispatcher.store import errors
from dispatcher.store.binding import load_binding
from dispatcher.store.fdb import API_VERSION, FdbDatabase, FdbSettings, translated
from dispatcher.store.fdb_backing import MOST_RANGES
from dispatcher.store.transaction import Transaction, read_counter
from tests import fdb_stub
from tests.fdb_stub import FDBError, FdbStub

fdb = load_binding()

KEY = b"count"


def add_once(tr: Transaction, request: bytes) -> None:
    """Idempotent by a natural key, as every transaction function must be."""
    if tr.get(request) is None:
        tr.set(request, b"")
        tr.add(KEY, 1)


async def test_it_opens_the_named_cluster_with_the_api_version_of_the_binding() -> None:
    stub = FdbStub()

    async with FdbDatabase(FdbSettings(cluster_file="/etc/fdb.cluster"), binding=stub):
        pass

    assert (stub.version, stub.opened) == (API_VERSION, ["/etc/fdb.cluster"])
    assert fdb.LATEST_API_VERSION == API_VERSION
    assert stub.options.chosen == []


async def test_tls_is_chosen_before_the_cluster_is_opened() -> None:
    stub = FdbStub()
    settings = FdbSettings(
        tls_certificate_file="cert.pem",
        tls_key_file="key.pem",
        tls_authority_file="ca.pem",
        tls_password="secret",
        tls_verify_peers="Check.Valid=1",
    )

    async with FdbDatabase(settings, binding=stub):
        pass

    assert stub.options.chosen == [
        ("set_tls_password", "secret"),
        ("set_tls_cert_path", "cert.pem"),
        ("set_tls_key_path", "key.pem"),
        ("set_tls_ca_path", "ca.pem"),
        ("set_tls_verify_peers", b"Check.Valid=1"),
    ]


async def test_two_databases_of_one_process_share_the_binding() -> None:
    stub = FdbStub()

    async with FdbDatabase(binding=stub) as one, FdbDatabase(binding=stub) as other:
        await one.run(lambda tr: tr.set(b"a", b"1"))
        assert await other.read(lambda tr: tr.get(b"a")) == b"1"


async def test_a_missing_library_is_a_matter_of_set_up() -> None:
    with pytest.raises(errors.StoreMisconfigured, match="client package") as refused:
        await FdbDatabase(binding=FdbStub(has_library=False)).__aenter__()

    assert "Unable to locate" in str(refused.value)


async def test_another_api_version_of_the_process_is_a_matter_of_set_up() -> None:
    with pytest.raises(errors.StoreMisconfigured, match="already loaded"):
        await FdbDatabase(binding=FdbStub(version=710)).__aenter__()


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


async def test_the_loop_is_free_while_a_transaction_waits() -> None:
    stub = FdbStub()
    async with FdbDatabase(binding=stub) as database:
        with stub.lock:  # as if the cluster took its time
            waiting = asyncio.create_task(database.run(lambda tr: tr.set(b"a", b"1")))
            for _ in range(5):
                await asyncio.sleep(0)
            assert not waiting.done()
        await waiting

        assert await database.read(lambda tr: tr.get(b"a")) == b"1"


async def test_canceled_caller_goes_on_when_its_commit_is_decided() -> None:
    stub = FdbStub()
    async with FdbDatabase(binding=stub) as database:
        with stub.lock:
            running = asyncio.create_task(database.run(lambda tr: tr.set(b"a", b"1")))
            await asyncio.wait({running}, timeout=0.1)
            running.cancel()
            await asyncio.wait({running}, timeout=0.1)
            undecided = not running.done()
        with pytest.raises(asyncio.CancelledError):
            await running

        assert undecided
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


def test_every_code_has_a_meaning() -> None:
    meant = [translated(FDBError(code)) for code in range(1, 5000)]

    assert all(isinstance(one, CoditectError) and type(one) is not CoditectError for one in meant)


def test_every_numbered_error_of_ours_is_mapped_from_its_number() -> None:
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
async def test_what_is_read_ahead_conflicts_only_once_it_is_read(
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
