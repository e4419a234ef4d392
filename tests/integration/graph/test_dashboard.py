"""rq-dashboard shows our jobs: the pages' own JSON, as its browser code asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import rq_dashboard.web
from redis import Redis
from rq.serializers import JSONSerializer
from rq_dashboard.cli import make_flask_app
from rq_dashboard.web import setup_rq_connection

from dispatcher.taskgraph.port import JobState, RequestKind
from tests.contract.graph.scene import Scene
from tests.integration.graph.sides import StockSide
from tests.integration.graph.stock import Stock
from tests.integration.registry.private_redis import PrivateRedis

pytestmark = pytest.mark.servers

Get = Callable[[str], Any]


@pytest.fixture
def web(server: PrivateRedis, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The dashboard as `rq-dashboard --json --redis-url ...` makes it, without its port."""
    monkeypatch.setattr(rq_dashboard.web.config, "serializer", JSONSerializer, raising=False)
    app = make_flask_app(None, None, None, "")
    app.config["RQ_DASHBOARD_REDIS_URL"] = server.url
    app.testing = True
    setup_rq_connection(app)
    return app.test_client()


@pytest.fixture
def get(web: Any) -> Get:
    def read(path: str) -> Any:
        answer = web.get(f"/0/data/{path}.json")
        assert answer.status_code == 200, answer.data
        return answer.get_json()

    return read


async def test_dashboard_counts_the_jobs_of_every_state(get: Get, scene: Scene, stock: Stock) -> None:
    for number, state in enumerate(JobState, 1):
        await scene.create(*[scene.job(f"{state.value}_{one}", state=state) for one in range(number)])

    (row,) = [queue for queue in get("queues")["queues"] if queue["name"] == stock.name]

    counted = {"queued": row["count"]} | {
        state.value: row[f"{state.value}_job_registry_count"] for state in JobState if state is not JobState.QUEUED
    }
    assert counted == await scene.counts()


@pytest.mark.parametrize("state", [*JobState])
async def test_dashboard_lists_the_jobs_of_every_state(get: Get, scene: Scene, stock: Stock, state: JobState) -> None:
    await scene.create(scene.job("root"), *[scene.job(node, "root", state=state) for node in ("a", "b")])
    await scene.tell(JobState.FAILED, "root")

    listed = get(f"jobs/{stock.name}/{state.value}/8/asc/1")["jobs"]

    ours = {job["id"]: job["description"] for job in listed if job["id"] != stock.id("root")}
    assert ours == {stock.id(node): f"{node}: code.review" for node in ("a", "b")}


async def test_dashboard_shows_a_job_with_its_outcome(get: Get, scene: Scene, stock: Stock) -> None:
    await scene.create(scene.job("a"), scene.job("b"))
    await scene.graph.tell(
        [
            replace(scene.change("a", JobState.FINISHED), result=b'{"lines":42}'),
            replace(scene.change("b", JobState.FAILED), error="no such file"),
        ]
    )

    first, second = (get(f"job/{stock.id(node)}") for node in ("a", "b"))

    assert (first["status"], first["result"], first["origin"]) == ("finished", {"lines": 42}, stock.name)
    assert (second["status"], second["exc_info"]) == ("failed", "no such file")
    assert first["created_at"] and first["enqueued_at"] and first["ended_at"]


async def test_dashboard_does_with_dependencies_what_it_does_with_those_of_stock(
    client: Redis, web: Any, scene: Scene, stock: Stock
) -> None:
    """rq-dashboard 0.9.0 fails on the page of any job with dependencies under RQ 2.12; ours are no better or worse."""
    theirs = StockSide(client, scene)
    await theirs.create({"a": (), "b": ("a",)})
    await scene.create(scene.job("a"), scene.job("b", "a"))
    web.application.testing = False

    statuses = [web.get(f"/0/data/job/{job}.json").status_code for job in (stock.id("b"), theirs.id("b"))]

    assert statuses[0] == statuses[1]


async def test_dashboards_requeue_button_is_a_request(web: Any, scene: Scene, stock: Stock) -> None:
    await scene.create(scene.job("a"))
    await scene.tell(JobState.FAILED, "a")

    assert web.post(f"/job/{stock.id('a')}/requeue").status_code == 200

    assert await scene.requests() == [scene.request("a", RequestKind.REQUEUE)]


async def test_dashboards_delete_button_loses_a_job_that_comes_back(web: Any, scene: Scene, stock: Stock) -> None:
    await scene.create(scene.job("a"), scene.job("b", "a"))

    assert web.post(f"/job/{stock.id('a')}/delete").status_code == 200
    assert stock.counts() == {"deferred": 1}
    difference = await scene.graph.difference([scene.job("a"), scene.job("b", "a")])
    await scene.graph.create(difference.missing)
    await scene.graph.tell(difference.changes)

    assert await scene.adopt() == ["a"]
    await scene.tell(JobState.FINISHED, "a")
    assert await scene.adopt() == ["b"]
