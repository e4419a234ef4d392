"""The limits of a transaction that need a clock or a count of their own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dispatcher.store.errors import TransactionTooLarge, TransactionTooOld
from dispatcher.store.limits import KEY_BYTES, TRANSACTION_BYTES, TRANSACTION_SECONDS
from dispatcher.store.memory import Disk, View
from dispatcher.store.transaction import Transaction, call


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("late", [False, True])
def test_a_transaction_may_be_open_for_five_seconds(late: bool) -> None:
    clock = Clock()
    tr = Transaction(View(Disk()), now=clock)
    clock.now += TRANSACTION_SECONDS + 0.001 * late

    reads: list[Callable[[], object]] = [
        lambda: tr.get(b"a"),
        lambda: tr.snapshot.get(b"a"),
        lambda: tr.get_range(b"a", b"b"),
        lambda: tr.get_many([b"a"]),
        lambda: tr.get_ranges([(b"a", b"b")]),
        tr.get_read_version,
        tr.snapshot.get_read_version,
    ]
    for read in reads:
        if late:
            with pytest.raises(TransactionTooOld):
                read()
        else:
            read()


def test_a_function_that_only_writes_becomes_too_old_as_well() -> None:
    clock = Clock()

    def body(tr: Transaction) -> None:
        tr.set(b"a", b"")
        clock.now += TRANSACTION_SECONDS + 1

    with pytest.raises(TransactionTooOld):
        call(body, Transaction(View(Disk()), now=clock))


def test_what_may_conflict_counts_and_a_snapshot_read_does_not() -> None:
    tr = Transaction(View(Disk()))

    tr.snapshot.get(b"a" * KEY_BYTES)
    tr.snapshot.get_range(b"a", b"b")
    tr.snapshot.get_many([b"a" * KEY_BYTES])
    tr.snapshot.get_ranges([(b"a", b"b")])
    assert tr.size_bytes == 0
    tr.get(b"a" * KEY_BYTES)
    one = tr.size_bytes
    assert one > 2 * KEY_BYTES
    tr.get_many([b"a" * KEY_BYTES, b"b" * KEY_BYTES])
    assert tr.size_bytes == 3 * one
    tr.get_ranges([(b"a" * KEY_BYTES, b"b" * KEY_BYTES)])
    assert tr.size_bytes == 4 * one


def test_reading_too_many_keys_makes_a_transaction_too_large() -> None:
    tr = Transaction(View(Disk()))

    with pytest.raises(TransactionTooLarge) as refused:
        for _ in range(TRANSACTION_BYTES // KEY_BYTES):
            tr.get(b"a" * KEY_BYTES)

    assert refused.value.facts["limit_bytes"] == TRANSACTION_BYTES
