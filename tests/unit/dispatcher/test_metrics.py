"""What a dispatcher counts of a committed batch, and of the queues when it leads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from coditect.aio.supervisor import Supervisor
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.broker.port import QueueStats
from coditect.broker.topology import base_topology, capability_queues
from coditect.model.message import Message
from coditect.model.registration import AgentRecord
from coditect.telemetry.metrics import Histogram, MemoryMetrics, Series, Value
from coditect.wire import routing
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger.effects import Effects, NodeKey, Transition, WorkflowEnd
from dispatcher.ledger.rows import NodeRecord
from dispatcher.liveness import queue_depths
from dispatcher.liveness.queue_depths import QueueDepths
from dispatcher.metrics import ShardMetrics
from tests.support import eventually
from tests.unit.registry.samples import IDLE, make_registration


def told(metrics: MemoryMetrics, name: str, **labels: str) -> Value:
    return metrics.samples()[f"coditect_{name}", tuple(sorted(labels.items()))]


def seconds(metrics: MemoryMetrics, name: str, **labels: str) -> tuple[int, float]:
    value = told(metrics, name, **labels)
    assert isinstance(value, Histogram)
    return sum(value.counts), value.total


def test_ends_of_workflows_are_counted_by_state_and_name_and_failures_once_more() -> None:
    metrics = MemoryMetrics()
    effects = Effects(accepted=["w"], late=2, strange=1, tick_delays_ms=[250])
    ends = [state for state in WorkflowState if state.terminal]
    effects.ended = [WorkflowEnd(state, 500, name="nightly" * (state == "completed")) for state in ends]
    effects.say("workflow.checkpoint", "w", checkpoint="tested")
    effects.say("workflow.restored", "w", checkpoint="tested")
    effects.say("workflow.checkpoint", "w", checkpoint="built")
    shard = ShardMetrics(metrics)
    for _ in range(3):
        shard.committed(effects, 0.004)

    for state in ends:
        assert seconds(metrics, "workflow_duration_seconds", state=state.value) == (3, 1.5)
    assert seconds(metrics, "workflow_named_duration_seconds", workflow="nightly") == (1, 0.5), "a name that is common"
    assert told(metrics, "workflow_failures_total") == 3 * 3, "failed, rejected, and a compensation that failed"
    assert told(metrics, "workflows_accepted_total") == 3
    assert seconds(metrics, "store_commit_seconds") == (3, 0.012)
    assert seconds(metrics, "schedule_lateness_seconds") == (3, 0.75)
    assert told(metrics, "results_refused_total", reason="late") == 6
    assert told(metrics, "results_refused_total", reason="unknown") == 3
    assert told(metrics, "checkpoints_total", action="made") == 6
    assert told(metrics, "checkpoints_total", action="restored") == 3


def test_nodes_are_measured_by_name_and_the_elements_of_a_map_as_one() -> None:
    metrics, effects = MemoryMetrics(), Effects()
    for name, ready_ms in (("review[3]", 1_000), ("review[4]", 3_000), ("ask", None)):
        row = NodeRecord(TaskState.COMPLETED, ready_ms=ready_ms, finished_ms=3_500)
        effects.transitions.append(Transition(NodeKey("w", name), TaskState.COMPLETED, "", "", row))
    running = NodeRecord(TaskState.WORKING, ready_ms=1)
    effects.transitions.append(Transition(NodeKey("w", "ship"), TaskState.WORKING, "", "", running))

    shard = ShardMetrics(metrics)
    for _ in range(2):
        shard.committed(effects, 0.0)

    assert seconds(metrics, "workflow_node_duration_seconds", node="other") == (2, 3.0)
    assert seconds(metrics, "workflow_node_duration_seconds", node="review") == (2, 3.0)
    assert ("coditect_workflow_node_duration_seconds", (("node", "ask"),)) not in metrics.samples()
    assert ("coditect_workflow_node_duration_seconds", (("node", "ship"),)) not in metrics.samples()


class Asked(MemoryBroker):
    """Counts how often it is asked for a queue."""

    times = 0

    async def stats(self, queue: str) -> QueueStats | None:
        self.times += 1
        return await super().stats(queue)


@dataclass
class Scene:
    broker: Asked
    metrics: MemoryMetrics
    depths: QueueDepths
    capability: str
    leads: bool = True

    def read(self, metric: str) -> dict[Series, Value]:
        return {series: value for series, value in self.metrics.samples().items() if series[0] == metric}

    def ages(self) -> dict[str, float]:
        read = self.read("coditect_queue_oldest_age_seconds").items()
        return {dict(labels)["priority"]: age for (_, labels), age in read if not isinstance(age, Histogram)}


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    registration = make_registration()
    capability = registration.capabilities[0].name
    async with Asked(MemoryServer(), name="one") as broker, Supervisor() as background:
        await broker.declare(base_topology() + capability_queues(capability))
        metrics = MemoryMetrics()
        depths = QueueDepths(broker, metrics, leads=lambda: made.leads)
        made = Scene(broker, metrics, depths, capability)
        depths.note([AgentRecord(replace(registration, capabilities=registration.capabilities[:1]), IDLE, 1000)])
        background.start(depths.run(), name="queue depths")
        yield made


async def test_depth_of_a_queue_without_consumers_is_shown(scene: Scene) -> None:
    key = f"{scene.capability}.p1"
    await scene.broker.publish(Message(b"1"), exchange=routing.SUBMIT, routing_key=key)
    series = ("coditect_queue_depth", (("capability", scene.capability), ("priority", "p1")))

    await eventually(lambda: scene.read("coditect_queue_depth").get(series) == 1)

    assert scene.read("coditect_queue_consumers")["coditect_queue_consumers", series[1]] == 0
    assert scene.read("coditect_capability_agents") == {
        ("coditect_capability_agents", (("capability", scene.capability),)): 1
    }


async def test_capability_whose_agents_are_gone_is_still_looked_at(scene: Scene) -> None:
    scene.depths.note([])

    await scene.depths.look()

    assert len(scene.read("coditect_queue_depth")) == 3
    assert [*scene.read("coditect_capability_agents").values()] == [0]
    assert scene.read("coditect_registry_size") == {("coditect_registry_size", ()): 0}


async def test_age_counts_from_the_last_look_that_found_the_queue_empty(scene: Scene) -> None:
    await scene.depths.look()
    key = f"{scene.capability}.p0"
    await scene.broker.publish(Message(b"1"), exchange=routing.SUBMIT, routing_key=key)

    await eventually(lambda: _looked_older(scene))

    assert scene.ages()["p0"] > 0
    assert scene.ages()["p1"] == scene.ages()["p2"] == 0


async def _looked_older(scene: Scene) -> bool:
    await scene.depths.look()
    return any(scene.ages().values())


async def test_nothing_is_asked_while_nobody_reads_or_another_leads(scene: Scene) -> None:
    await asyncio.sleep(0.05)  # it leads, and nobody reads: nothing is to happen
    assert scene.broker.times == 0

    scene.leads = False
    assert scene.read("coditect_queue_depth") == {}
    await eventually(lambda: not scene.depths._asked.is_set())

    assert scene.broker.times == 0


@pytest.mark.parametrize(("unseen", "begins_again"), [(60.0, False), (0.05, True)])
async def test_age_begins_again_when_nobody_has_looked_for_long(
    scene: Scene, unseen: float, begins_again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_depths, "UNSEEN_SECONDS", unseen)
    await scene.broker.publish(Message(b"1"), exchange=routing.SUBMIT, routing_key=f"{scene.capability}.p1")
    await scene.depths.look()
    await asyncio.sleep(0.1)  # nobody reads the metrics meanwhile
    await scene.depths.look()

    assert (scene.ages()["p1"] == 0) is begins_again
