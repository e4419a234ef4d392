"""What the tests of workflows run on when they run on a cluster, on the stub of the binding."""

from __future__ import annotations

from dispatcher.store.fdb import FdbDatabase
from tests.fdb_cluster import Subspace
from tests.fdb_stub import FdbStub


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
