"""What a transaction sets a timer for is done when the time has come, though nothing else happens in the shard."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from coditect import Retry, Workflow
from coditect.model.result import Outcome
from dispatcher.ledger.commands import Finished
from tests.support import eventually
from tests.unit.dispatcher.lone_ledger import completed, failed
from tests.unit.dispatcher.lone_worker import CAPABILITY, open_worker

SOON = "20ms"


def waiting() -> Workflow:
    flow = Workflow("waiting")
    flow.task(CAPABILITY, after=[flow.wait(SOON)], name="only")
    return flow


def delayed() -> Workflow:
    flow = Workflow("delayed")
    flow.task(CAPABILITY, name="only", delay=SOON)
    return flow


def asking() -> Workflow:
    flow = Workflow("asking")
    flow.task(CAPABILITY, after=[flow.approval("now?", timeout=SOON, on_timeout="grant")], name="only")
    return flow


def trying() -> Workflow:
    flow = Workflow("trying")
    flow.task(CAPABILITY, name="only", retry=Retry(max_attempts=2, first=SOON))
    return flow


def looping() -> Workflow:
    flow = Workflow("looping")
    flow.task(CAPABILITY, name="only", repeat={"until": "result.done", "most": 2, "every": SOON})
    return flow


def trying_a_child() -> Workflow:
    child = Workflow("child")
    child.task(CAPABILITY, name="only", retry=Retry(max_attempts=1))
    flow = Workflow("parent")
    flow.workflow(child, name="run", retry=Retry(max_attempts=2, first=SOON))
    return flow


@pytest.mark.parametrize("make", [waiting, delayed, asking])
async def test_task_that_waits_for_its_time_is_published_then(make: Callable[[], Workflow]) -> None:
    async with open_worker() as lone:
        await lone.start(make())

        await eventually(lambda: lone.published() == 1)


@pytest.mark.parametrize(
    ("make", "outcome"),
    [(trying, failed(retryable=True)), (looping, completed({"done": False})), (trying_a_child, failed())],
)
async def test_task_that_is_done_again_after_a_pause_is_published_then(
    make: Callable[[], Workflow], outcome: Outcome
) -> None:
    async with open_worker() as lone:
        await lone.start(make())
        await eventually(lambda: lone.published() == 1)
        ((node_key, flight),) = lone.worker.in_flight

        await lone.say(Finished(node_key, flight.fence, flight.publication, outcome))

        await eventually(lambda: lone.published() == 2)
