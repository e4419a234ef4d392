"""What we write is what stock RQ 2.12 writes, key by key and field by field.

The differences are few, and each is said here:

* `coditect_state` in a job's hash is ours; stock tools read over it
* a job's `data` is not compressed; stock reads both
* `+inf` as the score of a started job, whose keys have no TTL: it needs no heartbeat
* the execution of a job that is canceled while it runs ends with it; stock leaves it to its TTL
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from redis import Redis

from tests.contract.graph.scene import Scene
from tests.integration.graph.picture import Picture
from tests.integration.graph.sides import Graph, OurSide, Side, StockSide
from tests.integration.graph.stock import Stock

pytestmark = pytest.mark.servers

Steps = Callable[[Side], Awaitable[object]]
DIAMOND: Graph = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c")}


async def nothing(_side: Side) -> None:
    """The jobs as they are created."""


async def start(side: Side) -> None:
    await side.start("a")


async def finish(side: Side) -> None:
    await side.start("a")
    await side.finish("a", {"lines": 42})


async def finish_with_nothing(side: Side) -> None:
    await side.start("a")
    await side.finish("a", None)


async def finish_some(side: Side) -> None:
    await finish(side)
    await side.start("b")
    await side.finish("b", "ok")


async def finish_all(side: Side) -> None:
    await finish_some(side)
    await side.start("c")
    await side.finish("c", [1, 2])
    await side.start("d")
    await side.finish("d", True)


async def fail(side: Side) -> None:
    await finish(side)
    await side.start("b")
    await side.fail("b", "Traceback: the review failed")


async def cancel_queued(side: Side) -> None:
    await finish(side)
    await side.cancel("c")


async def cancel_deferred(side: Side) -> None:
    await side.cancel("d")
    await finish(side)


async def cancel_started(side: Side) -> None:
    await side.start("a")
    await side.cancel("a")


STEPS = (
    nothing,
    start,
    finish,
    finish_with_nothing,
    finish_some,
    finish_all,
    fail,
    cancel_queued,
    cancel_deferred,
    cancel_started,
)


@pytest.mark.parametrize("steps", STEPS, ids=lambda steps: steps.__name__)
async def test_keys_are_those_of_stock(steps: Steps, client: Redis, scene: Scene, stock: Stock) -> None:
    ours, theirs = OurSide(client, scene, stock.name), StockSide(client, scene)
    for side in (ours, theirs):
        await side.create(DIAMOND)
        await steps(side)

    written, expected = ours.picture(DIAMOND), theirs.picture(DIAMOND)

    assert _without_ours(written) == _as_ours(expected)
    assert bool(client.sismember("rq:queues", f"rq:queue:{stock.name}"))


def _without_ours(written: Picture) -> Picture:
    for node in DIAMOND:
        job = written[f"{node} job"]
        assert job.pop("coditect_state") == job["status"]
    return written


def _as_ours(expected: Picture) -> Picture:
    expected["wip"] = dict.fromkeys(expected["wip"], "inf")
    for node in expected["canceled"]:
        expected[f"{node} executions"] = []
    return expected
