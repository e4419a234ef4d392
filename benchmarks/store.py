"""Small transactions per second on the embedded store, by the number of concurrent callers.

    python -m benchmarks.store [--seconds 3] [--callers 1 8 64 256] [--output json]

One transaction reads a key, writes it and adds to a counter, each caller in keys of its own.
`synchronous=FULL`, on the disk that `--folder` is on. Read the figures only on a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from dispatcher.store.keys import Space
from dispatcher.store.sqlite import SqliteDatabase
from dispatcher.store.transaction import Transaction, read_counter, write_counter

TARGET_PER_SECOND = 5_000
TARGET_CALLERS = 64
RECORDS = Space(("benchmark", "record"))
TOTALS = Space(("benchmark", "total"))


@dataclass(frozen=True, slots=True)
class Figure:
    callers: int
    transactions_per_second: float
    transactions_per_sync: float
    p50_ms: float
    p99_ms: float


def small(tr: Transaction, caller: int, turn: int) -> None:
    key = RECORDS.pack((caller, turn % 100))
    seen = read_counter(tr.get(key))
    tr.set(key, write_counter(seen + 1) + bytes(92))
    tr.add(TOTALS.pack((caller,)), 1)


async def measure(folder: Path, *, callers: int, seconds: float) -> Figure:
    times: list[float] = []
    async with SqliteDatabase(folder / f"store-{callers}.db") as database:
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
        groups = database.groups
    times.sort()
    return Figure(
        callers=callers,
        transactions_per_second=round(len(times) / taken, 1),
        transactions_per_sync=round(len(times) / groups, 1),
        p50_ms=round(times[len(times) // 2] * 1000, 3),
        p99_ms=round(times[len(times) * 99 // 100] * 1000, 3),
    )


def show(figures: list[Figure]) -> None:
    print(f"{'callers':>8} {'tx/s':>10} {'tx/sync':>8} {'p50 ms':>8} {'p99 ms':>8}")
    for one in figures:
        print(
            f"{one.callers:>8} {one.transactions_per_second:>10,.0f} {one.transactions_per_sync:>8.1f}"
            f" {one.p50_ms:>8.2f} {one.p99_ms:>8.2f}"
        )
    for one in figures:
        if one.callers == TARGET_CALLERS:
            verdict = "reached" if one.transactions_per_second >= TARGET_PER_SECOND else "MISSED"
            print(f"target {TARGET_PER_SECOND:,} tx/s with {TARGET_CALLERS} callers: {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement (default 3)")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 64, 256], help="default 1 8 64 256")
    parser.add_argument("--folder", type=Path, help="where the file is made (default: a temporary folder)")
    parser.add_argument("--output", choices=["table", "json"], default="table", help="default table")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        figures = [
            asyncio.run(measure(Path(folder), callers=callers, seconds=asked.seconds)) for callers in asked.callers
        ]
    if asked.output == "json":
        print(json.dumps([asdict(one) for one in figures], indent=2))
    else:
        show(figures)


if __name__ == "__main__":
    main()
