"""What the tests of workflows run on when they run on a cluster, on the stub of the binding."""

from __future__ import annotations

import subprocess
import sys

from dispatcher.store.fdb import FdbDatabase
from tests.fdb_cluster import Subspace
from tests.fdb_stub import FdbStub
from tests.servers import ROOT

FLEET = """
import asyncio

import dispatcher.program
from coditect import Agent, Workflow
from coditect.testing import TestFleet
from tests import fdb_cluster

fdb_cluster.put_in_place("fdb-stub")
worker = Agent("worker")
worker.capability("work")(lambda _: 7)

async def main():
    flow = Workflow("one")
    flow.task("work", name="only")
    async with TestFleet([worker]) as fleet:
        run = await fleet.start(flow)
        print(await run.result(), len(fdb_cluster.ClusterDatabase.binding.disk.keys) > 0)

asyncio.run(main())
"""


async def test_subspaces_of_one_cluster_do_not_see_each_other() -> None:
    stub = FdbStub()
    async with (
        FdbDatabase(binding=Subspace(stub, b"one/")) as one,
        FdbDatabase(binding=Subspace(stub, b"other/")) as other,
    ):
        for database, value in ((one, b"1"), (other, b"2")):
            await database.run(lambda tr: tr.set(b"a", value))  # noqa: B023  # awaited at once
            await database.run(lambda tr: tr.add(b"count", 1))
        await other.run(lambda tr: tr.clear_range(b"b", b"\xff"))

        assert await one.read(lambda tr: tr.get_range(b"", b"\xff")) == [(b"a", b"1"), (b"count", b"\1" + bytes(7))]
        assert await other.read(lambda tr: tr.get_range(b"", b"\xff", reverse=True)) == [(b"a", b"2")]

    assert [key[:6] for key in stub.disk.keys] == [b"one/a", b"one/co", b"other/"]


def test_a_fleet_whose_modules_were_imported_before_has_its_ledger_on_the_cluster_too() -> None:
    done = subprocess.run([sys.executable, "-c", FLEET], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.stdout == "7 True\n", done.stderr
