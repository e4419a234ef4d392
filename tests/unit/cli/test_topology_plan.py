from __future__ import annotations

import json

import pytest

from coditect.broker.port import Probe, ProbeVerdict
from coditect.broker.topology import (
    DEAD_DELIVERY_LIMIT,
    Binding,
    Queue,
    Topology,
    agent_queues,
    base_topology,
    capability_queues,
    reply_queue,
)
from coditect.broker.topology_diff import TopologyDifference, parse_difference
from tests.unit.cli.scene import AGENT, Terminal

QUEUE_TTL = "PRECONDITION_FAILED - inequivalent arg 'x-message-ttl' for queue 'retry.after.100' in vhost '/': "
EXCHANGE_TYPE = "inequivalent arg 'type' for exchange 'x' in vhost 'a': "


@pytest.mark.parametrize(
    ("text", "argument", "current", "wanted"),
    [
        (QUEUE_TTL + "received '5' but current is '6'", "x-message-ttl", "6", "5"),
        (QUEUE_TTL + "received the value '5' of type 'signedint' but current is none", "x-message-ttl", None, "5"),
        (QUEUE_TTL + "received none but current is the value '6' of type 'long'", "x-message-ttl", "6", None),
        (EXCHANGE_TYPE + "received 'topic' but current is 'fanout'", "type", "fanout", "topic"),
        ("something else entirely", "", None, None),
    ],
)
def test_broker_text_about_a_difference_is_read(
    text: str, argument: str, current: str | None, wanted: str | None
) -> None:
    assert parse_difference(text) == TopologyDifference(argument, current, wanted, text)


def test_plan_of_an_empty_broker_says_that_apply_creates_every_queue(terminal: Terminal) -> None:
    ran = terminal.run("topology", "apply", "--dry-run", "--capability", "code.review", "--output", "json")

    states = {step["name"]: step["verdict"] for step in ran.json["steps"]}
    assert ran.code == 1
    assert states["dead.code.review"] == states["unrouted"] == "missing"
    assert ran.json["unbound"] is None


def test_apply_creates_and_a_second_plan_is_clean(terminal: Terminal) -> None:
    terminal.register()

    applied = terminal.run("topology", "apply")
    planned = terminal.run("topology", "apply", "--dry-run", "--output", "json")

    assert (applied.code, planned.code) == (0, 0)
    assert "tasks.code.review.p0" in applied.out
    assert f"All {planned.json['bindings']} bindings were declared" in applied.err
    assert f"{len(planned.json['steps'])} of {len(planned.json['steps'])} are as the code wants them" in applied.err
    assert planned.json["clean"] is True


@pytest.mark.parametrize(
    ("received", "current", "policy"),
    [
        ("received '100' but current is '5000'", "5000", True),
        ("received '100' but current is none", "none", True),
        ("received '100' but current is '10'", "10", False),
        ("received none but current is '10'", "10", False),
    ],
)
def test_difference_says_argument_values_and_the_way_out(
    terminal: Terminal, received: str, current: str, policy: bool
) -> None:
    terminal.connections.probes["retry.after.100"] = Probe(ProbeVerdict.DIFFERS, QUEUE_TTL + received)

    ran = terminal.run("topology", "apply", "--dry-run")

    assert ran.code == 1
    assert f"x-message-ttl is {current}" in ran.out
    assert "rabbitmqctl delete_queue retry.after.100" in ran.out
    assert (
        "set_policy --apply-to queues retry.after.100 '^retry\\.after\\.100$' '{\"message-ttl\":100}'" in ran.out
    ) is policy


def test_exchange_of_another_kind_is_deleted_and_applied(terminal: Terminal) -> None:
    text = "inequivalent arg 'alternate-exchange' for exchange 'coditect.tasks' in vhost '/': "
    terminal.connections.probes["coditect.tasks"] = Probe(
        ProbeVerdict.DIFFERS, text + "received 'coditect.unrouted' but current is none"
    )

    ran = terminal.run("topology", "apply", "--dry-run")

    assert "rabbitmqadmin delete exchange name=coditect.tasks" in ran.out
    assert '{"alternate-exchange":"coditect.unrouted"}' in ran.out


def test_apply_leaves_what_differs_and_makes_the_rest(terminal: Terminal) -> None:
    other = Topology((), (Queue("dead.code.review", delivery_limit=1),), ())
    terminal.declare(other)
    terminal.connections.probes["dead.code.review"] = Probe(ProbeVerdict.DIFFERS, "who knows")

    ran = terminal.run("topology", "apply", "-c", "code.review")

    kept = terminal.connections.server.queue("dead.code.review").declared
    assert ran.code == 1
    assert "differs: who knows" in ran.out
    assert "dead.code.review" in ran.err
    assert kept.delivery_limit == 1 != DEAD_DELIVERY_LIMIT
    assert terminal.count("tasks.code.review.p1") == 0


def test_export_is_a_definitions_document(terminal: Terminal) -> None:
    terminal.connections.directory.failing = True

    document = json.loads(terminal.run("topology", "export", "-c", "code.review", "--vhost", "fleet").out)

    queues = {queue["name"]: queue for queue in document["queues"]}
    assert queues["tasks.code.review.p0"]["arguments"]["x-dead-letter-exchange"] == "coditect.dead"
    assert queues["tasks.code.review.p0"]["vhost"] == "fleet"
    assert {"source": "coditect.tasks", "destination": "tasks.code.review.p1"}.items() <= next(
        binding for binding in document["bindings"] if binding["routing_key"] == "code.review"
        and binding["source"] == "coditect.tasks"
    ).items()  # fmt: skip
    assert all(exchange["durable"] for exchange in document["exchanges"])


@pytest.mark.parametrize("named", [(), ("-c", "code.review")])
def test_queues_are_made_with_the_bound_that_their_agents_declare(terminal: Terminal, named: tuple[str, ...]) -> None:
    terminal.register(max_queued=10)

    terminal.run("topology", "apply", *named)

    queues = {level: terminal.connections.server.queue(f"tasks.code.review.{level}") for level in ("p0", "p1", "p2")}
    assert {level: queue.declared.max_length for level, queue in queues.items()} == {"p0": None, "p1": 20, "p2": 10}


def test_export_for_kubernetes_is_a_list_of_objects_for_the_named_cluster(terminal: Terminal) -> None:
    terminal.connections.directory.failing = True

    arguments = ("topology", "export", "-c", "code.review", "--format", "k8s", "--cluster", "broker")
    document = json.loads(terminal.run(*arguments).out)

    queue = next(item for item in document["items"] if item["metadata"]["name"] == "tasks.code.review.p0")
    assert (document["kind"], queue["kind"], queue["apiVersion"]) == ("List", "Queue", "rabbitmq.com/v1beta1")
    assert queue["spec"]["arguments"]["x-dead-letter-exchange"] == "coditect.dead"
    assert queue["spec"]["rabbitmqClusterReference"] == {"name": "broker"}


def test_binding_that_somebody_needs_and_the_broker_lacks_is_a_difference(terminal: Terminal) -> None:
    terminal.register()
    terminal.run("topology", "apply")
    mine = base_topology() + capability_queues("code.review") + reply_queue("reply.cli") + agent_queues(AGENT, slots=1)
    queues = {Binding("", binding.queue, binding.queue) for binding in mine.bindings}
    terminal.connections.bound = frozenset(mine.bindings) | queues
    whole = terminal.run("topology", "apply", "--dry-run", "--capability", "code.review", "--output", "json")
    lost = {reply_queue("reply.cli").bindings[0], Binding("coditect.submit", "tasks.code.review.p1", "code.review.p1")}
    lost.add(Binding("coditect.broadcast", f"agent.{AGENT}.mail"))

    terminal.connections.bound -= lost
    lacking = terminal.run("topology", "apply", "--dry-run", "--capability", "code.review", "--output", "json")

    assert (whole.code, lacking.code, lacking.json["clean"]) == (0, 1, False)
    found = {Binding(row["exchange"], row["queue"], row["key"]) for row in lacking.json["unbound"]}
    assert found == lost
    assert (
        "coditect.submit -> tasks.code.review.p1"
        in terminal.run("topology", "apply", "--dry-run", "-c", "code.review").out
    )


def test_diagrams_are_printed_of_the_agents_that_live(terminal: Terminal) -> None:
    terminal.register()

    ran = terminal.run("topology", "export", "--diagrams", "-")

    assert ran.code == 0
    diagrams = [line for line in ran.out.splitlines() if line.startswith("C4")]
    assert diagrams == ["C4Context", "C4Container", "C4Component"]
    assert '"1 process", "Offers code.review. Publishes to coditect.submit, ' in ran.out


def test_diagrams_without_a_registry_say_that_it_does_not_answer(terminal: Terminal) -> None:
    terminal.connections.directory.failing = True

    ran = terminal.run("topology", "export", "--diagrams", "-")

    assert ran.code == 1
    assert "registry" in ran.err.lower()
