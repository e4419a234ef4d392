from __future__ import annotations

import asyncio

from coditect.broker.topology import base_topology
from coditect.broker.topology_diff import PlannedBroker
from coditect.model.capability import CapabilitySpec
from coditect.model.ids import AgentId
from coditect.model.registration import AgentStatus, Load, Registration
from coditect.registry.port import LEFT
from tests.unit.cli.scene import AGENT, Terminal


def test_list_shows_the_living_agents(terminal: Terminal) -> None:
    terminal.register()

    table = terminal.run("agent", "list")
    document = terminal.run("agent", "list", "--capability", "code.review", "--output", "json").json

    assert AGENT in table.out
    assert "code.review" in table.out
    assert document[0]["free_slots"] == 5
    assert document[0]["load"]["completed"] == 7


def test_list_of_a_search_that_finds_nothing_says_how_many_agents_there_are(terminal: Terminal) -> None:
    document = terminal.run("agent", "list", "--tag", "rust", "--output", "json")
    none = terminal.run("agent", "list", "--tag", "rust")
    terminal.register()
    found = terminal.run("agent", "list", "--tag", "rust")

    assert (document.code, document.json) == (0, [])
    assert [" ".join((ran.out + ran.err).split()) for ran in (none, found)] == [
        "No agent fits (registered: 0).",
        "No agent fits (registered: 1).",
    ]


def test_list_and_show_have_the_trouble_of_an_agent(terminal: Terminal) -> None:
    terminal.register(trouble="too many open files")

    ran = [terminal.run("agent", *words) for words in (("list",), ("get", AGENT))]
    listed = terminal.run("agent", "list", "--output", "json").json

    assert "busy: too many open files" in ran[0].out
    assert "too many open files" in ran[1].out
    assert listed[0]["load"]["trouble"] == "too many open files"


def test_list_and_show_have_an_http_agent_that_takes_no_tasks_yet(terminal: Terminal) -> None:
    terminal.register()
    waiting = Registration(AgentId("words-00000001"), "words", "1.0.0", 1, (CapabilitySpec("words.count"),))
    asyncio.run(terminal.connections.bridged.register(waiting, Load(status=AgentStatus.IDLE), lease_seconds=60))

    listed = terminal.run("agent", "list", "--output", "json").json
    starting = terminal.run("agent", "list", "--status", "starting")
    shown = terminal.run("agent", "get", "words-00000001")

    assert [(agent["agent_id"], agent["status"]) for agent in listed] == [
        (AGENT, "busy"),
        ("words-00000001", "starting"),
    ]
    assert "starting: no bridge serves it yet" in starting.out
    assert AGENT not in starting.out
    assert (shown.code, "words.count" in shown.out) == (0, True)


def test_list_and_show_have_an_agent_that_went_away(terminal: Terminal) -> None:
    terminal.register()
    asyncio.run(terminal.connections.directory.deregister(AgentId(AGENT)))

    living = terminal.run("agent", "list", "--output", "json").json
    gone = terminal.run("agent", "list", "--status", "offline")
    shown = terminal.run("agent", "get", AGENT, "--output", "json").json

    assert living == []
    assert f"offline: {LEFT}" in gone.out
    assert (shown["status"], shown["load"]["trouble"]) == ("offline", LEFT)
    assert shown["last_heartbeat"] is not None


def test_show_gives_schema_and_load(terminal: Terminal) -> None:
    terminal.register()

    table = terminal.run("agent", "get", AGENT)
    document = terminal.run("agent", "get", AGENT, "--output", "json").json

    assert "Reads code." in table.out
    assert "running" in table.out
    assert document["capabilities"][0]["tags"] == ["python"]


def test_show_of_an_unknown_agent_exits_4_and_names_the_nearest(terminal: Terminal) -> None:
    terminal.register()

    ran = terminal.run("agent", "get", "reviewer-00000002")

    assert ran.code == 4
    assert f"nearest: {AGENT}" in ran.err


def test_registry_that_does_not_answer_exits_1_with_the_way_out(terminal: Terminal) -> None:
    terminal.connections.directory.failing = True

    ran = terminal.run("agent", "list")

    assert ran.code == 1
    assert "Fix: `coditect doctor`" in ran.err


def test_drain_reaches_the_mail_of_the_agent(terminal: Terminal) -> None:
    async def read_mailbox(broker: PlannedBroker) -> str | None:
        delivery = await broker.get(f"agent.{AGENT}.mail")
        return delivery.message.type if delivery else None

    terminal.open_mailbox()

    ran = terminal.run("agent", "drain", AGENT)

    assert ran.code == 0
    assert terminal.broker(read_mailbox) == "coditect.drain.v1"


def test_drain_of_an_unknown_agent_exits_4(terminal: Terminal) -> None:
    terminal.declare(base_topology())

    assert terminal.run("agent", "drain", "nobody").code == 4


def test_drain_waits_until_the_agent_is_gone_or_exits_3(terminal: Terminal) -> None:
    terminal.open_mailbox()
    gone = terminal.run("agent", "drain", AGENT, "--wait", "1s")
    terminal.register()
    stays = terminal.run("agent", "drain", AGENT, "--wait", "10ms")

    assert (gone.code, stays.code) == (0, 3)
    assert "is gone" in gone.err
