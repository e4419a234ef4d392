"""The topology as Kubernetes objects: they say what the definitions say, by names that Kubernetes takes."""

from __future__ import annotations

import re
from typing import Any, cast

import pytest

from coditect.broker.topology import Topology, base_topology, capability_queues
from coditect.broker.topology_diff import export_definitions
from coditect.operations.topology import export_manifests, object_name

WHOLE = base_topology() + capability_queues("code.review") + capability_queues("run_tests")
LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"


def _specs(topology: Topology) -> dict[str, list[dict[str, Any]]]:
    items = cast(list[dict[str, Any]], export_manifests(topology, cluster="rabbitmq", vhost="fleet")["items"])
    kinds = ("Exchange", "Queue", "Binding")
    return {kind: [one["spec"] for one in items if one["kind"] == kind] for kind in kinds}


def test_objects_say_what_the_definitions_say() -> None:
    definitions = cast(dict[str, list[dict[str, Any]]], export_definitions(WHOLE, vhost="fleet"))

    specs = _specs(WHOLE)

    assert [(one["name"], one["type"], one.get("arguments", {})) for one in specs["Exchange"]] == [
        (one["name"], one["type"], one["arguments"]) for one in definitions["exchanges"]
    ]
    assert [(one["name"], {"x-queue-type": one["type"]} | one.get("arguments", {})) for one in specs["Queue"]] == [
        (one["name"], one["arguments"]) for one in definitions["queues"]
    ]
    assert [(one["source"], one["destination"], one["routingKey"]) for one in specs["Binding"]] == [
        (one["source"], one["destination"], one["routing_key"]) for one in definitions["bindings"]
    ]


def test_deleted_object_leaves_its_queue_and_every_object_names_cluster_and_vhost() -> None:
    specs = _specs(WHOLE)

    assert {one["deletionPolicy"] for one in specs["Queue"]} == {"retain"}
    everything = [one for kind in specs.values() for one in kind]
    assert {(one["vhost"], one["rabbitmqClusterReference"]["name"]) for one in everything} == {("fleet", "rabbitmq")}


def test_object_names_are_dns_names_and_no_two_of_a_kind_are_the_same() -> None:
    items = cast(list[dict[str, Any]], export_manifests(WHOLE, cluster="rabbitmq")["items"])

    names = [(one["kind"], one["metadata"]["name"]) for one in items]

    assert len(set(names)) == len(names)
    for _, name in names:
        assert re.fullmatch(rf"{LABEL}(\.{LABEL})*", name) and len(name) <= 253, name


@pytest.mark.parametrize("name", ["run_tests", "run-tests-", "dead.#"])
def test_name_that_kubernetes_does_not_take_is_altered_and_keeps_apart_from_its_like(name: str) -> None:
    assert object_name("run-tests") == "run-tests"
    assert re.fullmatch(r"[a-z-]+-[0-9a-f]{8}", object_name(name))
    assert len({object_name(one) for one in (name, "run.tests", "run__tests", "run_tests-")}) == 4
