"""Small transactions per second on a store, by the number of concurrent callers.

    python -m benchmarks.store [--store sqlite] [--store fdb] [--seconds 3] [--callers 1 8 64 256] [--output json]

One transaction reads a key, writes it and adds to a counter, each caller in keys of its own.
SQLite has `synchronous=FULL`, on the disk that `--folder` is on. FoundationDB is the cluster that `FDB_CLUSTER_FILE`
names; the keys of the benchmark are removed from it. Read the figures only on a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from dispatcher.store.fdb import FdbDatabase
from dispatcher.store.keys import Space
from dispatcher.store.sqlite import SqliteDatabase
from dispatcher.store.transaction import Transaction, read_counter, write_counter

TARGET_PER_SECOND = 5_000
TARGET_CALLERS = 64
OURS = Space(("benchmark",))
RECORDS, TOTALS = OURS["record"], OURS["total"]
CONFLICT = 1020


@dataclass(frozen=True, slots=True)
class Figure:
    store: str
    callers: int
    transactions_per_second: float
    transactions_per_sync: float | None
    """Of SQLite, whose writer commits waiting transactions in one group."""
    conflicts: int
    repeats: int
    """Transactions that were started again, for whatever reason."""
    p50_ms: float
    p99_ms: float


def small(tr: Transaction, caller: int, turn: int) -> None:
    key = RECORDS.pack((caller, turn % 100))
    seen = read_counter(tr.get(key))
    tr.set(key, write_counter(seen + 1) + bytes(92))
    tr.add(TOTALS.pack((caller,)), 1)


@asynccontextmanager
async def opened(store: str, folder: Path, callers: int) -> AsyncIterator[SqliteDatabase | FdbDatabase]:
    """Open a store that has no key of the benchmark, during the block."""
    if store == "sqlite":
        async with SqliteDatabase(folder / f"store-{callers}.db") as embedded:
            yield embedded
        return
    async with FdbDatabase() as cluster:
        await cluster.run(lambda tr: tr.clear_range(*OURS.range()))
        try:
            yield cluster
        finally:
            await cluster.run(lambda tr: tr.clear_range(*OURS.range()))


async def measure(store: str, folder: Path, *, callers: int, seconds: float) -> Figure:
    times: list[float] = []
    async with opened(store, folder, callers) as database:
        end = time.perf_counter() + seconds

        async def caller(number: int) -> None:
            turn = 0
            while (began := time.perf_counter()) < end:
                await database.run(lambda tr: small(tr, number, turn))  # noqa: B023  # awaited before the next turn
                times.append(time.perf_counter() - began)
                turn += 1

        began = time.perf_counter()
        await asyncio.gather(*(caller(number) for number in range(callers)))
        taken = time.perf_counter() - began
        groups = database.groups if isinstance(database, SqliteDatabase) else None
        repeats = database.repeats if isinstance(database, FdbDatabase) else {}
    times.sort()
    return Figure(
        store=store,
        callers=callers,
        transactions_per_second=round(len(times) / taken, 1),
        transactions_per_sync=groups and round(len(times) / groups, 1),
        conflicts=repeats.get(CONFLICT, 0),
        repeats=sum(repeats.values()),
        p50_ms=round(times[len(times) // 2] * 1000, 3),
        p99_ms=round(times[len(times) * 99 // 100] * 1000, 3),
    )


def show(figures: list[Figure]) -> None:
    columns = ("store", "callers", "tx/s", "tx/sync", "p50 ms", "p99 ms", "conflicts", "repeats")
    print(" ".join(f"{name:>10}" for name in columns))
    for figure in figures:
        print(
            f"{figure.store:>10} {figure.callers:>10} {figure.transactions_per_second:>10,.0f}"
            f" {figure.transactions_per_sync or '-':>10} {figure.p50_ms:>10.2f} {figure.p99_ms:>10.2f}"
            f" {figure.conflicts:>10} {figure.repeats:>10}"
        )
    for figure in figures:
        if figure.store == "sqlite" and figure.callers == TARGET_CALLERS:
            verdict = "reached" if figure.transactions_per_second >= TARGET_PER_SECOND else "MISSED"
            print(f"target {TARGET_PER_SECOND:,} tx/s with {TARGET_CALLERS} callers: {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", action="append", choices=["sqlite", "fdb"], help="default sqlite; may be repeated")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (default 3)")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 64, 256], help="default 1 8 64 256")
    parser.add_argument("--folder", type=Path, help="where the file is made (default: a temporary folder)")
    parser.add_argument("--output", choices=["table", "json"], default="table", help="default table")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        figures = [
            asyncio.run(measure(store, Path(folder), callers=callers, seconds=asked.seconds))
            for store in asked.store or ["sqlite"]
            for callers in asked.callers
        ]
    if asked.output == "json":
        print(json.dumps([asdict(figure) for figure in figures], indent=2))
    else:
        show(figures)


if __name__ == "__main__":
    main()
