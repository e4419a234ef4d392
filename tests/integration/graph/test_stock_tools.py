"""Stock RQ and its dashboard read, count, cancel and requeue our jobs, and can do no harm to them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import rq_dashboard.web
from redis import Redis
from rq import Queue
from rq.job import Job, JobStatus
from rq.results import Result
from rq.serializers import DefaultSerializer, JSONSerializer, Serializer
from rq_dashboard.cli import make_flask_app
from rq_dashboard.web import setup_rq_connection

from coditect.model.capability import Priority
from dispatcher.taskgraph.function import FUNCTION
from dispatcher.taskgraph.port import MOST_RESULT_BYTES, JobState, RequestKind
from tests.contract.graph.scene import Scene
from tests.integration.graph.stock import Stock
from tests.integration.registry.private_redis import PrivateRedis

pytestmark = pytest.mark.servers

DEFERRED, SCHEDULED, QUEUED, STARTED, FINISHED, FAILED, CANCELED = JobState
SERIALIZERS = pytest.mark.parametrize("serializer", [JSONSerializer, DefaultSerializer])


async def test_stock_fetches_a_job_with_everything_it_knows(scene: Scene, stock: Stock) -> None:
    await scene.create(scene.job("a"), scene.job("b[0]", "a"))
    await scene.graph.tell([replace(scene.change("a", FINISHED), result=b'{"lines": 42}', entry="1700000000000-7")])
    first, second = stock.fetch("a"), stock.fetch("b[0]")

    assert (first.func_name, first.args, first.kwargs) == (FUNCTION, [scene.workflow, "a"], {})
    assert first.get_status() is JobStatus.FINISHED
    assert first.return_value() == {"lines": 42}
    assert [result.id for result in first.results()] == ["1700000000000-7"]
    assert second.args == [scene.workflow, "b[0]"]
    assert [job.id for job in second.fetch_dependencies()] == [first.id]
    assert second.get_status() is JobStatus.QUEUED
    assert second.get_position() == 0


async def test_stock_shows_why_a_job_failed_and_no_long_result(scene: Scene, stock: Stock) -> None:
    longest = b'"' + b"x" * (MOST_RESULT_BYTES - 2) + b'"'
    await scene.create(*map(scene.job, "abc"))
    await scene.graph.tell(
        [
            replace(scene.change("a", FAILED), error="no such file: ü"),
            replace(scene.change("b", FINISHED), result=longest),
            replace(scene.change("c", FINISHED), result=longest + b" "),
        ]
    )

    result = stock.fetch("a").latest_result()
    assert result is not None
    assert (result.type, result.exc_string) == (Result.Type.FAILED, "no such file: ü")
    assert [stock.fetch(node).return_value() for node in "bc"] == ["x" * (MOST_RESULT_BYTES - 2), None]
    assert stock.fetch("c").get_status() is JobStatus.FINISHED


@pytest.mark.parametrize("by_hand", [Job.cancel, Job.delete])
async def test_job_that_is_put_right_keeps_its_end(scene: Scene, stock: Stock, by_hand: Callable[[Job], None]) -> None:
    ended = scene.job("a", state=FINISHED)
    outcome = replace(scene.change("a", FINISHED), result=b"42", entry="1700000000000-1")
    await scene.create(ended)
    await scene.graph.tell([outcome])
    by_hand(stock.fetch("a"))

    await scene.mend(ended)
    await scene.graph.tell([outcome])

    assert stock.fetch("a").return_value() == 42
    assert len(stock.fetch("a").results()) == 1


async def test_outcome_that_is_told_again_after_a_loss_has_one_entry(client: Redis, scene: Scene, stock: Stock) -> None:
    outcome = replace(scene.change("a", FINISHED), result=b"1", entry="1700000000000-1")
    await scene.create(scene.job("a"))
    await scene.graph.tell([outcome])
    client.delete(f"rq:job:{stock.id('a')}")

    await scene.create(scene.job("a", state=STARTED))
    await scene.graph.tell([outcome])
    await scene.graph.tell([outcome])

    assert len(stock.fetch("a").results()) == 1
    assert stock.counts() == {"finished": 1}


async def test_rq_info_and_stock_classes_count_what_we_count(scene: Scene, stock: Stock) -> None:
    for state in JobState:
        nodes = [f"{state.value}_{number}" for number in range(list(JobState).index(state) + 1)]
        await scene.create(*[scene.job(node, state=state) for node in nodes])

    assert await scene.counts() == stock.counts() == {state.value: number for number, state in enumerate(JobState, 1)}
    assert stock.info() == {stock.name: {"queued": 3, "executing": 4, "finished": 5, "failed": 6}}


async def test_job_that_runs_for_days_is_not_abandoned_and_outcomes_are_kept(scene: Scene, stock: Stock) -> None:
    ended = [scene.job("f", state=FINISHED), scene.job("g", state=FAILED)]
    await scene.create(scene.job("a"), scene.job("b", "a"), *ended)
    assert await scene.adopt() == ["a"]
    in_ten_years = time.time() + 10 * 365 * 86_400
    for registry in ("started", "finished", "failed"):
        getattr(stock.queue, f"{registry}_job_registry").cleanup(in_ten_years)
    stock.work()
    assert stock.counts() == {"started": 1, "deferred": 1, "finished": 1, "failed": 1}


async def test_removed_jobs_leave_no_key(client: Redis, scene: Scene, stock: Stock) -> None:
    await scene.create(scene.job("a"), scene.job("b", "a"), scene.job("c"), scene.job("d", "c"))
    assert await scene.adopt() == ["a", "c"]
    await scene.tell(FINISHED, "a")
    await scene.tell(FAILED, "c")
    await scene.tell(CANCELED, "d")

    await scene.graph.remove(scene.workflow, ["a", "b", "c", "d"])

    assert [*client.scan_iter(f"*{scene.workflow}*")] == []
    assert [*client.scan_iter(f"*{stock.name}")] == []


async def test_stock_cancel_that_is_refused_is_undone(scene: Scene, stock: Stock) -> None:
    await scene.create(scene.job("a"))
    stock.fetch("a").cancel()

    await scene.tell(QUEUED, "a")

    assert await scene.requests() == []
    assert stock.counts() == {"queued": 1}
    assert await scene.adopt() == ["a"]


async def test_rqs_command_line_requeues(scene: Scene, stock: Stock) -> None:
    await scene.create(scene.job("a"))
    await scene.tell(FAILED, "a")

    stock.rq("requeue", "--queue", stock.name, "--serializer", "json", stock.id("a"))

    assert stock.counts() == {"queued": 1}
    assert await scene.requests() == [scene.request("a", RequestKind.REQUEUE)]
    await scene.tell(STARTED, "a")
    await scene.tell(FINISHED, "a")
    assert stock.counts() == {"finished": 1}


async def test_canceled_job_that_somebody_enqueues_is_put_right(scene: Scene, stock: Stock) -> None:
    await scene.create(scene.job("a", state=CANCELED))
    stock.queue.enqueue_job(stock.fetch("a"))

    assert await scene.adopt() == ["a"]
    await scene.tell(CANCELED, "a")

    assert stock.counts() == {"canceled": 1}
    assert await scene.requests() == []


@SERIALIZERS
async def test_stock_worker_that_takes_a_job_is_noticed(scene: Scene, stock: Stock, serializer: Serializer) -> None:
    await scene.create(scene.job("a"), scene.job("b", "a"))

    stock.work(serializer=serializer)

    assert stock.counts() == {"failed": 1, "deferred": 1}
    assert await scene.requests() == [scene.request("a", RequestKind.STRAY)]
    if serializer is JSONSerializer:
        result = stock.fetch("a").latest_result()
        assert result is not None
        assert "stop the RQ worker that listens on coditect-* queues" in str(result.exc_string)
    await scene.tell(QUEUED, "a")
    assert await scene.requests() == []
    assert await scene.adopt() == ["a"]
    assert stock.counts() == {"started": 1, "deferred": 1}


@SERIALIZERS
async def test_stock_worker_never_gets_what_was_claimed(scene: Scene, stock: Stock, serializer: Serializer) -> None:
    await scene.create(scene.job("a"), scene.job("b", "a", state=STARTED), scene.job("c", "b"))
    assert await scene.adopt() == ["a"]
    stock.work(serializer=serializer)
    assert stock.counts() == {"started": 2, "deferred": 1}
    assert await scene.requests() == []


@SERIALIZERS
async def test_job_of_others_in_our_queue_is_failed_and_neither_executed_nor_proposed(
    scene: Scene, stock: Stock, serializer: Serializer, caplog: pytest.LogCaptureFixture
) -> None:
    job = Queue(stock.name, connection=stock.client, serializer=serializer).enqueue("os.getpid")
    await scene.create(scene.job("a"))

    with caplog.at_level(logging.WARNING):
        assert await scene.adopt() == ["a"]

    assert job.get_status() is JobStatus.FAILED
    result = Job.fetch(job.id, connection=stock.client, serializer=JSONSerializer).latest_result()
    assert result is not None
    assert FUNCTION in str(result.exc_string)
    assert [record.message for record in caplog.records] == ["A queue of ours had jobs of others; they were failed"]
    assert await scene.requests() == []
    job.requeue()
    assert await scene.adopt() == []
    assert job.get_status() is JobStatus.FAILED
    assert await scene.requests() == []


async def test_job_that_was_saved_after_its_deletion_is_failed_and_then_put_right(scene: Scene, stock: Stock) -> None:
    await scene.create(scene.job("a"))
    stale = stock.fetch("a")
    stale.delete()
    stock.queue.enqueue_job(stale)

    assert await scene.adopt() == []
    await scene.mend(scene.job("a"))

    assert await scene.requests() == []
    assert await scene.adopt() == ["a"]


async def test_job_that_a_stock_client_saved_too_late_is_put_right(scene: Scene, stock: Stock) -> None:
    await scene.create(scene.job("a"))
    stale = stock.fetch("a")
    assert await scene.adopt() == ["a"]

    stale.save()
    assert stock.fetch("a").get_status() is JobStatus.QUEUED
    await scene.mend(scene.job("a", state=STARTED))

    assert stock.fetch("a").get_status() is JobStatus.STARTED
    assert stock.counts() == {"started": 1}
    await scene.tell(FINISHED, "a")
    assert stock.counts() == {"finished": 1}


async def test_job_of_a_killed_stock_worker_is_put_back(client: Redis, scene: Scene, stock: Stock) -> None:
    await scene.create(scene.job("a"))
    client.lmove(f"rq:queue:{stock.name}", f"rq:queue:{stock.name}:intermediate")

    await scene.mend(scene.job("a"))

    assert await scene.adopt() == ["a"]
    assert client.exists(f"rq:queue:{stock.name}:intermediate") == 0


async def test_child_of_a_parent_that_was_deleted_stays(client: Redis, scene: Scene, stock: Stock) -> None:
    await scene.create(scene.job("a"), scene.job("b"), scene.job("c", "a", "b"))
    await scene.tell(FAILED, "a")
    client.delete(f"rq:job:{stock.id('a')}")

    stock.info()
    await scene.tell(FINISHED, "b")

    assert stock.counts()["deferred"] == 1
    assert await scene.adopt() == []


async def test_key_that_is_not_rqs_stops_nobody_else(
    client: Redis, scene: Scene, stock: Stock, caplog: pytest.LogCaptureFixture
) -> None:
    await scene.create(scene.job("a"), scene.job("b"))
    client.set(f"rq:job:{stock.id('c')}", "something else")

    await scene.graph.tell([scene.change(node, FINISHED) for node in ("a", "c", "b")])

    assert stock.counts() == {"finished": 2}
    assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == [
        "A key of RQ's job is not what RQ writes; the job keeps its state"
    ]


async def test_requests_of_other_shards_are_not_ours(scene: Scene, stock: Stock) -> None:
    await scene.create(scene.job("a", level=Priority.P0))
    Stock(stock.client, scene, queue=f"coditect-p0-{scene.shard}").fetch("a").cancel()

    assert await scene.graph.requests([scene.shard + 1]) == []
    assert await scene.requests() == [scene.request("a", RequestKind.CANCEL)]


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
