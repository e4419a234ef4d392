from __future__ import annotations

import asyncio

import pytest

from coditect.broker.topology import Binding, base_topology, capability_queues
from coditect.broker.topology_diff import PlannedBroker
from coditect.wire import routing
from coditect.wire.control import Verb
from tests.control_plane import ScriptedPlane
from tests.unit.cli.scene import AGENT, Terminal
from tests.unit.operations.scene import DEAD, TASKS, letter


@pytest.fixture
def buried(terminal: Terminal) -> Terminal:
    """Three dead letters of a capability that an agent offers."""

    async def bury(broker: PlannedBroker) -> None:
        await broker.declare(base_topology() + capability_queues("code.review"))
        for message in (letter("one"), letter("two", reason="expired"), letter("three")):
            await broker.publish(message, exchange=routing.DEAD, routing_key="code.review.p1")

    terminal.register()
    terminal.broker(bury)
    return terminal


def test_list_shows_letters_as_json_with_the_queues(buried: Terminal) -> None:
    ran = buried.run("dead", "list", "--output", "json")

    assert ran.code == 0
    assert [letter["id"] for letter in ran.json["letters"]] == ["one", "two", "three"]
    assert ran.json["queues"] == {DEAD: 3, "unrouted": 0}
    assert "body" not in ran.json["letters"][0]


@pytest.fixture
def node(terminal: Terminal, plane: ScriptedPlane) -> str:
    """The id of a node whose agents died."""
    plane.at_once = False
    started = terminal.run("task", "submit", "code.review", '{"path": "src"}', "--detach").out.strip()
    plane.only.nodes["task"] |= {"state": "dead", "reason": "process_died", "agent": "worker-1", "message": "gone"}
    return started


def test_nodes_that_were_given_up_are_listed_behind_the_letters(buried: Terminal, node: str) -> None:
    table = buried.run("dead", "list").out.splitlines()
    died = buried.run("dead", "list", "--reason", "process_died", "--output", "json").json
    others = buried.run("dead", "list", "--agent", "worker-2", "--output", "json").json

    assert [row.split()[0] for row in table] == ["ID", "one", "two", "three", node]
    assert "process_died" in table[-1]
    assert [row["id"] for row in died["nodes"]] == [node]
    assert died["letters"] == others["nodes"] == []
    assert node not in buried.run("dead", "list", "--limit", "3").out


def test_redrive_of_a_node_that_many_come_after_names_some(terminal: Terminal, plane: ScriptedPlane, node: str) -> None:
    plane.more = True

    ran = terminal.run("dead", "redrive", "--node", node, "--yes")

    assert ran.out == "1 and more begin again: task, ...\n"


@pytest.mark.parametrize(("name", "redriven"), [("each[3]", "each"), ("each[3].compensate", "each[3].compensate")])
def test_redrive_runs_the_map_of_an_element_that_is_listed_again_but_a_compensation_alone(
    terminal: Terminal, plane: ScriptedPlane, node: str, name: str, redriven: str
) -> None:
    plane.only.nodes[name] = plane.only.nodes.pop("task") | {"name": name}
    (listed,) = terminal.run("dead", "list", "--output", "json").json["nodes"]

    ran = terminal.run("dead", "redrive", "--node", listed["id"], "--yes")

    assert listed["id"] == f"{node.partition(':')[0]}:{name}"
    assert [body["node"] for verb, body in plane.asked if verb is Verb.REDRIVE] == [redriven]
    assert ran.out == f"1 begin again: {redriven}\n"


def test_list_in_a_pipe_is_plain_aligned_text(buried: Terminal) -> None:
    ran = buried.run("dead", "list", "--reason", "expired")

    header, row = ran.out.splitlines()
    assert header.split()[:3] == ["ID", "CAPABILITY", "PRIORITY"]
    assert row.startswith("two ")
    assert "\x1b" not in ran.out
    assert "1 shown of 3" in ran.err


def test_list_goes_on_without_a_registry(buried: Terminal) -> None:
    buried.connections.directory.failing = True

    unnamed = buried.run("dead", "list", "--output", "json")
    named = buried.run("dead", "list", "--capability", "code.review", "--output", "json")

    assert unnamed.json["letters"] == []
    assert "registry does not answer" in unnamed.err
    assert len(named.json["letters"]) == 3


def test_letters_of_a_capability_whose_agents_are_gone_are_found_by_the_broker(buried: Terminal) -> None:
    asyncio.run(buried.connections.directory.deregister(AGENT))
    unknown = buried.run("dead", "list", "--output", "json")
    buried.connections.bound = frozenset({Binding("", DEAD, DEAD), Binding(routing.DEAD, routing.DEAD_NOTICES, "#")})

    listed = buried.run("dead", "list", "--output", "json")

    assert unknown.json["letters"] == []
    assert "CODITECT_MANAGEMENT_URL" in unknown.err
    assert [letter["id"] for letter in listed.json["letters"]] == ["one", "two", "three"]
    assert set(listed.json["queues"]) == {DEAD, "unrouted"}
    assert buried.run("dead", "get", "two").code == 0


def test_show_gives_body_traceback_and_history(buried: Terminal) -> None:
    ran = buried.run("dead", "get", "two")
    whole = buried.run("dead", "get", "two", "--output", "json").json

    assert '{"path": "src"}' in ran.out
    assert "Traceback" in ran.out
    assert whole["failure"]["message"] == "no such file"
    assert whole["errors"][0]["message"] == "first"
    assert buried.count(DEAD) == 3


def test_redrive_by_reason_brings_back_what_matches(buried: Terminal) -> None:
    ran = buried.run("dead", "redrive", "--reason", "handler_error", "--yes", "--output", "json")

    assert ran.code == 0
    assert (ran.json["count"], ran.json["ids"]) == (2, ["one", "three"])
    assert (buried.count(DEAD), buried.count(TASKS)) == (1, 2)


@pytest.mark.parametrize(
    "words",
    [
        ("redrive", "--yes"),
        ("discard", "--all", "--id", "one", "--yes"),
        ("redrive", "--node", "none"),
        ("redrive", "--node", ":a"),
        ("redrive", "--node", "w:a", "--all"),
        ("redrive", "--input", "{}", "--all", "--yes"),
    ],
    ids=" ".join,
)
def test_a_choice_that_is_missing_or_none_is_a_usage_error(buried: Terminal, words: tuple[str, ...]) -> None:
    assert buried.run("dead", *words).code == 2
    assert buried.count(DEAD) == 3


def test_dry_run_needs_no_yes_and_changes_nothing(buried: Terminal) -> None:
    ran = buried.run("dead", "redrive", "--all", "--dry-run")

    assert ran.code == 0
    assert "3 would be redriven" in ran.out
    assert buried.count(DEAD) == 3


def test_discard_asks_and_stops_at_no(buried: Terminal) -> None:
    ran = buried.run("dead", "discard", "--all", stdin="n\n")

    assert ran.code == 1
    assert buried.count(DEAD) == 3


def test_discard_by_id_takes_it_out_and_misses_the_unknown(buried: Terminal) -> None:
    ran = buried.run("dead", "discard", "--id", "one", "--id", "nope", "--yes", "--output", "json")

    assert ran.code == 4
    assert ran.json["ids"] == ["one"]
    assert "nope" in ran.err
    assert buried.count(DEAD) == 2


def test_letter_that_cannot_be_redriven_is_reported_and_exits_1(buried: Terminal) -> None:
    buried.broker(lambda broker: broker.delete_queue(TASKS))

    ran = buried.run("dead", "redrive", "--id", "one", "--yes")

    assert ran.code == 1
    assert "no queue" in ran.out
    assert buried.count(DEAD) == 3
