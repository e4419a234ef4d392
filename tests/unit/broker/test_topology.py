from __future__ import annotations

import pytest
from hypothesis import given

from coditect.broker import topology as t
from coditect.broker.rabbitmq.declare import is_private
from coditect.broker.topology import Binding, ExchangeType, Queue, QueueType, Topology
from coditect.model.capability import Priority
from coditect.model.ids import AgentId
from coditect.model.retry import RETRY_DELAYS_MS
from coditect.wire import routing
from tests.unit.model.strategies import capabilities

AGENT = AgentId("reviewer-0000aaaa")


def everything() -> Topology:
    return (
        t.base_topology()
        + t.capability_queues("code.review", max_queued=1_000)
        + t.agent_queues(AGENT, slots=4)
        + t.reply_queue("reply.client")
        + t.reply_queue("reply.quorum").replicated
        + t.event_queue("events.listener", ("task.*",))
        + t.notices()
    )


def test_every_queue_keeps_what_it_has_and_quorum_queues_bound_deliveries() -> None:
    copies = {one.name for one in t.notices().queues}
    for queue in everything().queues:
        is_quorum, arguments = queue.type is QueueType.QUORUM, queue.arguments
        assert "x-max-priority" not in arguments, queue.name
        assert not is_quorum or (queue.delivery_limit or 0) > 0, queue.name
        if is_quorum and queue.dead_letter_exchange:
            assert arguments["x-dead-letter-strategy"] == "at-least-once", queue.name
            assert arguments["x-overflow"] == "reject-publish", queue.name
        if queue.bounded and queue.name not in copies and not queue.name.startswith("events."):
            assert arguments["x-overflow"] == "reject-publish", queue.name


def test_notices_are_bounded_in_number_bytes_and_time_and_refuse_nothing() -> None:
    for queue in t.notices().queues:
        assert queue.arguments == {
            "x-queue-type": "quorum",
            "x-delivery-limit": 1_000_000,
            "x-overflow": "drop-head",
            "x-message-ttl": 3_600_000,
            "x-expires": 3_600_000,
            "x-max-length": 10_000,
            "x-max-length-bytes": 67_108_864,
        }


def test_classic_queue_has_no_argument_that_only_a_quorum_queue_knows() -> None:
    queue = Queue("q", QueueType.CLASSIC, delivery_limit=5, dead_letter_exchange="dlx", max_length=3)

    assert queue.arguments == {
        "x-queue-type": "classic",
        "x-dead-letter-exchange": "dlx",
        "x-overflow": "reject-publish",
        "x-max-length": 3,
    }


def test_every_binding_and_dead_letter_exchange_is_declared_with_it() -> None:
    topology = everything()
    exchanges = {one.name for one in topology.exchanges}
    queues = {one.name for one in topology.queues}

    assert {one.exchange for one in topology.bindings} <= exchanges
    assert {one.queue for one in topology.bindings} <= queues
    assert {one.dead_letter_exchange for one in topology.queues} - {None} <= exchanges
    assert {one.alternate for one in topology.exchanges} - {None} <= exchanges


def test_what_comes_from_no_client_of_ours_has_an_alternate_exchange() -> None:
    alternates = {one.name: one.alternate for one in t.base_topology().exchanges if one.alternate}

    assert alternates == {routing.TASKS: routing.UNROUTED, routing.RETRY_BACK: routing.TASKS}


def test_each_retry_delay_has_a_fanout_and_a_queue() -> None:
    topology = t.base_topology()
    exchanges = {one.name: one for one in topology.exchanges}
    queues = {one.name: one for one in topology.queues}

    for delay in RETRY_DELAYS_MS:
        assert exchanges[f"coditect.retry.after.{delay}"].type is ExchangeType.FANOUT
        assert queues[f"retry.after.{delay}"].message_ttl_ms == delay
        assert queues[f"retry.after.{delay}"].dead_letter_exchange == routing.RETRY_BACK
        assert queues[f"retry.after.{delay}"].dead_letter_routing_key is None
        assert Binding(f"coditect.retry.after.{delay}", f"retry.after.{delay}") in topology.bindings


@given(capabilities)
def test_dead_letters_of_a_capability_are_declared_before_the_queues_that_send_them(capability: str) -> None:
    topology = t.capability_queues(capability)

    assert [one.name for one in topology.queues] == [
        f"dead.{capability}",
        f"retry.back.{capability}",
        *(f"tasks.{capability}.{level.value}" for level in Priority),
    ]


@given(capabilities)
def test_capability_is_reached_through_both_doors_at_every_level(capability: str) -> None:
    bindings = t.capability_queues(capability).bindings

    for door in (routing.SUBMIT, routing.TASKS):
        for level in Priority:
            queue = f"tasks.{capability}.{level.value}"
            assert Binding(door, queue, f"{capability}.{level.value}") in bindings
        assert Binding(door, f"tasks.{capability}.p1", capability) in bindings


@pytest.mark.parametrize(("name", "kind"), [("tasks", QueueType.QUORUM), ("next", QueueType.CLASSIC)])
def test_agents_own_queue_hands_on_what_it_did_not_take(name: str, kind: QueueType) -> None:
    inbox = next(one for one in t.agent_queues(AGENT, slots=4).queues if one.name == f"agent.{AGENT}.{name}")

    assert (inbox.type, routing.hands_on(inbox.name)) == (kind, True)
    assert (inbox.message_ttl_ms, inbox.max_length, inbox.dead_letter_exchange) == (1_000, 8, routing.TASKS)
    assert (inbox.dead_letter_routing_key, inbox.expires_ms) == (None, 3_600_000)


@pytest.mark.parametrize("quorum", [False, True])
def test_reply_queue_outlives_its_process_by_ten_minutes(quorum: bool) -> None:
    wanted = t.reply_queue("reply.x")
    (queue,) = (wanted.replicated if quorum else wanted).queues

    assert queue.expires_ms == 600_000
    assert queue.type is (QueueType.QUORUM if quorum else QueueType.CLASSIC)


def test_sum_of_topologies_keeps_order_and_has_everything_once() -> None:
    one = t.capability_queues("a")

    assert one + one == one
    assert (one + t.capability_queues("b")).queues[: len(one.queues)] == one.queues
    assert one + Topology() == one


def test_results_have_dead_letters_and_requests_have_none() -> None:
    queues = (t.control_plane() + t.shard_queues(3) + t.shard_queues(3).replicated).queues

    assert {(one.name, one.dead_letter_exchange, one.dead_letter_routing_key) for one in queues} == {
        ("control", None, None),
        ("control.3", None, None),
        ("results.3", routing.UNROUTED, "results.3"),
    }


@pytest.mark.parametrize("quorum", [False, True])
def test_what_belongs_to_one_process_expires(quorum: bool) -> None:
    """A process that is killed removes nothing, and nobody else may be there to do it."""
    of_one = t.agent_queues(AGENT, slots=1) + t.reply_queue("reply.x") + t.event_queue("events.x", ())
    of_one = of_one.replicated if quorum else of_one

    assert [one.name for one in of_one.queues if one.expires_ms is None] == []


def test_only_shared_queues_are_another_s_to_declare_where_processes_may_not() -> None:
    declared = t.topology_by_declarer(slots=4, shard=3)
    shared = declared.pop("every process") + declared.pop("an agent, for each capability")

    assert not [one.name for one in shared.queues if is_private(one.name)]
    assert not [one.name for whole in declared.values() for one in whole.queues if not is_private(one.name)]
