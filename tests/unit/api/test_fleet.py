"""The fleet over HTTP: what it offers, what waits, what was given up, and what stands in the way."""

from __future__ import annotations

import asyncio

import pytest
from httpx2 import AsyncClient

from coditect.operations import scorecard
from coditect.operations.scorecard import TARGETS, Measure
from coditect.testing import TestFleet
from coditect.wire import routing


async def test_capabilities_have_their_schemas(api: AsyncClient) -> None:
    listed = (await api.get("/v1/capabilities")).json()
    shown = (await api.get("/v1/capabilities/text.count")).json()

    assert listed == [shown]
    assert shown["capability"]["input_schema"]["type"] == "string"
    assert len(shown["agents"]) == 1
    assert (await api.get("/v1/capabilities/no.such")).status_code == 404


async def test_agents_are_listed_with_what_they_offer(api: AsyncClient) -> None:
    (agent,) = (await api.get("/v1/agents")).json()
    shown = (await api.get("/v1/agents/counter-1")).json()

    assert (agent["agent_id"], [one["name"] for one in agent["capabilities"]]) == ("counter-1", ["text.count"])
    assert shown["agent_id"] == "counter-1"


async def test_queues_are_listed_by_capability_and_level(fleet: TestFleet, api: AsyncClient) -> None:
    fleet.pause("counter")
    for _ in range(20):  # the agent has taken some
        await fleet.submit("text.count", "a", priority="p2")
    (queues,) = (await api.get("/v1/queues")).json()
    fleet.resume("counter")

    assert queues["capability"] == "text.count"
    assert [one["priority"] for one in queues["levels"]] == ["p0", "p1", "p2"]
    assert [one["messages"] > 0 for one in queues["levels"]] == [False, False, True]
    assert queues["dead"] == 0


async def test_dead_letters_are_searched_and_redriven_with_a_preview(fleet: TestFleet, api: AsyncClient) -> None:
    handle = await fleet.submit("text.count", "", max_attempts=1)
    await handle.outcome()
    listed = (await api.get("/v1/dead", params={"capability": "text.count", "keyword": "NO TEXT"})).json()
    none = (await api.get("/v1/dead", params={"keyword": "something else"})).json()
    shown = (await api.get(f"/v1/dead/{handle.task_id}")).json()
    unsaid = await api.post("/v1/dead/redrive", json={})
    preview = (await api.post("/v1/dead/redrive", json={"all": True, "dry_run": True})).json()
    redriven = (await api.post("/v1/dead/redrive", json={"ids": [handle.task_id]})).json()

    assert [one["id"] for one in listed["letters"]] == [handle.task_id]
    assert none["letters"] == []
    assert shown["failure"]["message"] == "there is no text"
    assert unsaid.status_code == 422
    assert (preview["count"], preview["dry_run"]) == (1, True)
    assert (redriven["count"], redriven["ids"]) == (1, [handle.task_id])


async def test_the_control_plane_tells_its_status(api: AsyncClient) -> None:
    status = (await api.get("/v1/status")).json()

    (dispatcher,) = status["dispatchers"]
    assert [one["owner"] for one in status["shards"]] == [dispatcher["owner"]]


async def test_the_overview_has_agents_queues_and_dispatchers(api: AsyncClient) -> None:
    overview = (await api.get("/v1/overview")).json()

    capabilities = {queue["capability"] for queue in overview["queues"]}
    assert "text.count" in capabilities
    assert [agent["tasks"] for agent in overview["agents"]] == [[]]
    assert len(overview["cluster"]["dispatchers"]) == 1
    assert overview["notes"] == []


async def test_the_scorecard_has_every_target_with_its_verdict(api: AsyncClient) -> None:
    rows = (await api.get("/v1/scorecard")).json()["rows"]

    assert [row["name"] for row in rows] == list(TARGETS)
    assert {row["name"]: row["verdict"] for row in rows}["capability matching"] == "pass"


async def test_callers_at_the_same_time_share_one_measurement_and_later_ones_get_a_new_one(
    api: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = list[object]()

    async def measure(opened: object) -> dict[str, Measure]:
        measured.append(opened)
        await asyncio.sleep(5)
        return {}

    monkeypatch.setattr(scorecard, "measure_fleet", measure)
    first, second = await asyncio.gather(api.get("/v1/scorecard"), api.get("/v1/scorecard"))
    assert (first.status_code, first.json(), len(measured)) == (200, second.json(), 1)

    await api.get("/v1/scorecard")
    assert len(measured) == 2


async def test_schedules_are_made_paused_and_deleted(api: AsyncClient) -> None:
    flow = {"name": "tick", "nodes": {"one": {"task": "text.count", "input": "four"}}}
    made = await api.put("/v1/schedules/hourly", json={"workflow": flow, "every": "1h"})
    paused = await api.post("/v1/schedules/hourly/pause")
    listed = (await api.get("/v1/schedules")).json()
    shown = (await api.get("/v1/schedules/hourly")).json()
    run = (await api.post("/v1/schedules/hourly/run")).json()
    deleted = await api.delete("/v1/schedules/hourly")

    assert made.json()["every_ms"] == 3_600_000
    assert paused.json()["state"] == "paused"
    assert [one["schedule"] for one in listed["items"]] == ["hourly"]
    assert shown["schedule"] == "hourly"
    assert run["workflow"]
    assert deleted.status_code == 204
    assert (await api.get("/v1/schedules/hourly")).status_code == 404


async def test_triggers_are_added_paused_and_removed(api: AsyncClient) -> None:
    flow = {"name": "push", "nodes": {"one": {"task": "text.count", "input": "four"}}}
    added = await api.put("/v1/triggers/pushed", json={"event": "repo.pushed", "workflow": flow})
    paused = await api.post("/v1/triggers/pushed/pause")
    listed = (await api.get("/v1/triggers")).json()
    removed = await api.delete("/v1/triggers/pushed")

    assert (added.json()["event"], paused.json()["state"]) == ("repo.pushed", "paused")
    assert [one["trigger"] for one in listed["items"]] == ["pushed"]
    assert removed.status_code == 204


async def test_breakers_are_opened_and_reset(api: AsyncClient) -> None:
    opened = await api.post("/v1/breakers/github/open", json={"reason": "maintenance"})
    shown = (await api.get("/v1/breakers/github")).json()
    reset = await api.post("/v1/breakers/github/reset", json={"reason": "done"})

    assert (opened.json()["open"], shown["state"]["reason"], reset.json()["open"]) == (True, "maintenance", False)
    assert (await api.get("/v1/breakers/unknown")).status_code == 404


async def test_locks_are_listed_and_released_by_force(fleet: TestFleet, api: AsyncClient) -> None:
    lock = fleet.client.lock("repo:x")
    await lock.__aenter__()
    listed = (await api.get("/v1/locks")).json()
    released = await api.post("/v1/locks/release", json={"resource": "repo:x", "reason": "it hangs"})

    assert [(one["resource"], one["state"]) for one in listed] == [("repo:x", "held")]
    assert released.json() == {"released": 1}
    assert (await api.post("/v1/locks/release", json={})).status_code == 422


async def test_a_value_is_replaced_only_in_the_version_that_was_read(api: AsyncClient) -> None:
    written = await api.put("/v1/state/team/plan", json={"step": 1}, headers={"if-match": '"0"'})
    read = await api.get("/v1/state/team/plan")
    replaced = await api.put("/v1/state/team/plan", json={"step": 2}, headers={"if-match": read.headers["etag"]})
    late = await api.put("/v1/state/team/plan", json={"step": 3}, headers={"if-match": read.headers["etag"]})
    listed = (await api.get("/v1/state/team")).json()
    history = (await api.get("/v1/state/team/plan/history")).json()
    removed = await api.delete("/v1/state/team/plan")

    assert written.headers["etag"] == read.headers["etag"] == '"1"'
    assert read.json()["value"] == {"step": 1}
    assert (replaced.status_code, late.status_code) == (200, 412)
    assert [one["key"] for one in listed] == ["plan"]
    assert [one["version"] for one in history] == [2, 1]
    assert removed.status_code == 204
    assert (await api.get("/v1/state/team/plan")).status_code == 404


async def test_an_agent_is_drained(fleet: TestFleet, api: AsyncClient) -> None:
    (agent,) = (await api.get("/v1/agents", params={"capability": "text.count"})).json()
    drained = await api.post(f"/v1/agents/{agent['agent_id']}/drain", json={"wait": "60s"})

    assert drained.status_code == 204
    assert (await api.get("/v1/agents")).json() == []


async def test_the_topology_is_compared_and_created(api: AsyncClient) -> None:
    plan = (await api.get("/v1/topology", params={"capability": "new.one"})).json()
    applied = (await api.post("/v1/topology", params={"capability": "new.one"})).json()
    after = (await api.get("/v1/topology", params={"capability": "new.one"})).json()
    document = (await api.get("/v1/topology/export", params={"capability": "new.one"})).json()

    assert "tasks.new.one.p0" in plan["missing"]
    assert "tasks.new.one.p0" not in after["missing"]
    assert applied["differing"] == []
    assert document["queues"]


async def test_what_was_lost_is_made_again(fleet: TestFleet, api: AsyncClient) -> None:
    await fleet.client._broker.delete_queue(routing.DEAD_NOTICES)

    rebuilt = (await api.post("/v1/rebuild")).json()
    again = (await api.post("/v1/rebuild")).json()

    assert (rebuilt["shards"], rebuilt["counts"]["queues"]) == (1, 1)
    assert set(again["counts"].values()) == {0}


async def test_the_diagrams_show_the_agents_that_live_and_the_exchanges_between_them(api: AsyncClient) -> None:
    drawn = {one["level"]: one for one in (await api.get("/v1/topology/diagrams")).json()}
    boxes = {one["name"]: one for one in drawn["containers"]["elements"]}
    ids = {one["id"] for one in drawn["components"]["elements"]}

    assert list(drawn) == ["context", "containers", "components"]
    assert boxes["counter"]["technology"] == "1 process"
    assert boxes["counter"]["description"].startswith("Offers text.count. Publishes to coditect.submit, ")
    assert drawn["context"]["mermaid"].startswith("C4Context\n")
    assert "offer 1 capability" in drawn["context"]["mermaid"]
    assert (
        'ComponentQueue(reply_process_queue, "reply.{process}", "classic queue", "")' in drawn["components"]["mermaid"]
    )
    assert {end for one in drawn["components"]["relations"] for end in (one["source"], one["target"])} == ids


async def test_lessons_are_listed_and_forgotten(fleet: TestFleet, api: AsyncClient) -> None:
    for capability, error in (("note.write", "no ink"), ("note.write", "no paper"), ("note.print", "no toner")):
        await fleet.client.emit("attempt.failed", subject="t-1", capability=capability, error=error, reason="broken")
    await fleet.advance("10s")

    found = (await api.get("/v1/lessons", params={"capability": "note.write"})).json()
    assert {(one["why"], one["count"], *one["tasks"]) for one in found} == {
        ("no ink", 1, "t-1"),
        ("no paper", 1, "t-1"),
    }
    assert len((await api.get("/v1/lessons")).json()) == 3
    limited = [(await api.get("/v1/lessons", params={"limit": limit})).json() for limit in (1, 2)]
    assert [[one["capability"] for one in rows] for rows in limited] == [["note.print"], ["note.print", "note.write"]]

    one = f"/v1/lessons/note.write?lesson={found[0]['id']}"
    assert [(await api.delete(path)).status_code for path in (one, one, "/v1/lessons/note.print")] == [204, 404, 204]
    assert [left["id"] for left in (await api.get("/v1/lessons")).json()] == [found[1]["id"]]
