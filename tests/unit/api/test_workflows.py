"""Workflows over HTTP, from their start to a restore."""

from __future__ import annotations

from typing import Any

from httpx2 import AsyncClient

from coditect.testing import TestFleet

FLOW = {
    "name": "flow",
    "nodes": {
        "count": {"task": "text.count", "input": {"$from": "input.text"}},
        "gate": {"approval": "Ship it?", "after": ["count"]},
        "last": {"task": "text.count", "input": "xyz", "after": ["gate"]},
    },
}
YAML = "name: quick\nnodes:\n  only: {task: text.count, input: four}\n"


async def start(api: AsyncClient, workflow: Any = FLOW, **more: Any) -> str:
    body = {"workflow": workflow, "input": {"text": "four"}, **more}
    return str((await api.post("/v1/workflows", json=body)).json()["id"])


async def eventually_waits(api: AsyncClient) -> dict[str, Any]:
    for _ in range(100):
        if rows := (await api.get("/v1/approvals")).json()["items"]:
            return dict(rows[0])
        await api.get("/v1/tasks/01890a5d-ac96-774b-bcce-b302099a8057:task")  # time passes
    raise AssertionError("no approval is open")


async def test_approver_sees_what_is_approved(fleet: TestFleet, api: AsyncClient) -> None:
    text = "long " * 100
    run = await start(api, input={"text": text}, labels={"team": "blue"})
    listed = await eventually_waits(api)
    shown = (await api.get(f"/v1/approvals/{run}:gate")).json()
    [event] = [event for event in fleet.events if event.type == "approval.asked"]

    about = listed["about"]
    assert (about["labels"], about["results"]) == ({"team": "blue"}, {"count": 500})
    assert about["workflow_input"].startswith('{"text":"long long') and about["workflow_input"].endswith("…")
    assert len(about["workflow_input"]) < 310
    assert shown["about"] == about | {"workflow_input": {"text": text}}
    assert event.data["about"] == about


async def test_a_workflow_is_started_approved_and_read(api: AsyncClient) -> None:
    run = await start(api)
    asked = await eventually_waits(api)
    granted = await api.post(f"/v1/approvals/{run}:{asked['node']}/grant", json={"by": "ada"})
    ended = await api.get(f"/v1/workflows/{run}", params={"wait": "60s"})
    value = await api.get(f"/v1/workflows/{run}/result")
    nodes = (await api.get(f"/v1/workflows/{run}/nodes", params={"limit": 2})).json()
    rest = (await api.get(f"/v1/workflows/{run}/nodes", params={"cursor": nodes["next"]})).json()
    node = (await api.get(f"/v1/workflows/{run}/nodes/count")).json()
    history = (await api.get(f"/v1/workflows/{run}/history")).json()

    assert granted.status_code == 204
    assert (ended.json()["state"], ended.json()["counts"]) == ("completed", {"completed": 3})
    assert value.json() == 3
    assert [one["name"] for one in nodes["items"] + rest["items"]] == ["count", "gate", "last"]
    assert rest["next"] is None
    assert (node["value"], node["input"], node["evaluated"], len(node["attempts"])) == (4, "four", True, 1)
    assert (node["trace"], node["trace_url"]) == ("", None)
    assert next(one["agent"] for one in history if one["node"] == "gate" and one["event"] == "node.completed") == "ada"


async def test_an_answer_is_in_the_audit_trail_and_counts_against_the_autonomy(api: AsyncClient) -> None:
    run = await start(api)
    asked = await eventually_waits(api)
    await api.post(f"/v1/approvals/{run}:{asked['node']}/grant", json={"by": "ada", "comment": "fine"})
    await api.get(f"/v1/workflows/{run}", params={"wait": "60s"})
    shown = (await api.get(f"/v1/approvals/{run}:gate")).json()
    people = (await api.get("/v1/audit", params={"automatic": False})).json()
    first = (await api.get("/v1/audit", params={"limit": 1})).json()
    second = (await api.get("/v1/audit", params={"limit": 1, "cursor": first["next"]})).json()
    unknown = await api.get(f"/v1/approvals/{run}:count")
    wrong = await api.get("/v1/audit", params={"sinse_ms": 1})
    rates = (await api.get("/v1/autonomy", params={"hours": 24 * 366})).json()

    assert (shown["decision"]["decision"], shown["decision"]["by"], shown["decision"]["why"]) == (
        "granted", "ada", "fine",
    )  # fmt: skip
    assert [(one["decision"], one["by"]) for one in shown["history"]] == [("asked", ""), ("granted", "ada")]
    assert [(one["node"], one["by"]) for one in people["items"]] == [("gate", "ada")]
    assert [one["decision"] for page in (first, second) for one in page["items"]] == ["granted", "asked"]
    assert (unknown.status_code, wrong.status_code) == (404, 422)
    assert rates["workflows"] == {"finished": 1, "completed": 1, "by_hand": 1}
    assert rates["capabilities"] == {"text.count": {"finished": 2, "completed": 2, "by_hand": 0}}


async def test_a_workflow_is_the_text_of_a_file_too_and_its_mistakes_have_lines(api: AsyncClient) -> None:
    good = await api.post("/v1/workflows", json={"workflow": YAML})
    bad = await api.post("/v1/workflows", json={"workflow": YAML.replace("task:", "tusk:")})

    assert good.status_code == 201
    assert bad.status_code == 422
    assert bad.json()["mistakes"][0]["line"] == 3


async def test_the_same_key_starts_one_workflow(api: AsyncClient) -> None:
    headers = {"idempotency-key": "once"}
    first = await api.post("/v1/workflows", json={"workflow": YAML}, headers=headers)
    again = await api.post("/v1/workflows", json={"workflow": YAML}, headers=headers)

    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]


async def test_workflows_are_listed_by_page_and_label(api: AsyncClient) -> None:
    runs = [await start(api, YAML, labels={"team": name}) for name in ("x", "y", "y")]

    first = (await api.get("/v1/workflows", params={"limit": 2})).json()
    second = (await api.get("/v1/workflows", params={"limit": 2, "cursor": first["next"]})).json()
    labelled = (await api.get("/v1/workflows", params={"label": "team=y"})).json()
    wrong = await api.get("/v1/workflows", params={"cursor": "nonsense!"})

    assert [one["workflow"] for one in first["items"] + second["items"]] == runs[::-1]
    assert {one["workflow"] for one in labelled["items"]} == set(runs[1:])
    assert wrong.status_code == 422


async def test_a_workflow_is_paused_resumed_and_canceled(api: AsyncClient) -> None:
    run = await start(api)

    paused = await api.post(f"/v1/workflows/{run}/pause")
    resumed = await api.post(f"/v1/workflows/{run}/resume")
    canceled = await api.post(f"/v1/workflows/{run}/cancel", json={"reason": "no need"})
    unknown = await api.post("/v1/workflows/01890a5d-ac96-774b-bcce-b302099a8057/pause")

    assert (paused.json()["state"], resumed.json()["state"]) == ("paused", "running")
    assert canceled.json()["reason"] == "no need"
    assert unknown.status_code == 404


async def test_a_workflow_is_restored_as_planned(api: AsyncClient) -> None:
    run = await start(api)
    await eventually_waits(api)
    named = await api.put(f"/v1/workflows/{run}/checkpoints/before")
    listed = (await api.get(f"/v1/workflows/{run}/checkpoints")).json()
    plan = (await api.get(f"/v1/workflows/{run}/checkpoints/count/plan")).json()
    restored = await api.post(f"/v1/workflows/{run}/checkpoints/count/restore", json={"token": plan["token"]})
    refused = await api.post(f"/v1/workflows/{run}/checkpoints/count/restore", json={"token": "another"})

    assert named.status_code == restored.status_code == 204
    assert [one["name"] for one in listed] == ["count", "before"]
    assert refused.status_code in (412, 422)


async def test_a_signal_is_sent_once(api: AsyncClient) -> None:
    second = {"await_signal": "paid", "after": ["first"]}
    run = await start(api, {"name": "waits", "nodes": {"first": {"await_signal": "paid"}, "second": second}})

    for value, name in ((7, "one"), (8, "one"), (9, "two")):
        sent = await api.post(f"/v1/workflows/{run}/signals/paid", json={"value": value, "id": name})
        assert sent.status_code == 200
    ended = await api.get(f"/v1/workflows/{run}/result", params={"wait": "60s"})

    assert ended.json() == 9


async def test_a_failed_node_is_run_again(api: AsyncClient) -> None:
    run = await start(
        api, {"name": "fails", "nodes": {"one": {"task": "text.count", "input": "", "retry": {"max_attempts": 1}}}}
    )
    ended = await api.get(f"/v1/workflows/{run}", params={"wait": "60s"})
    none = await api.get(f"/v1/workflows/{run}/result")
    preview = await api.post(f"/v1/workflows/{run}/nodes/one/redrive", json={"dry_run": True})
    again = await api.post(f"/v1/workflows/{run}/nodes/one/redrive", json={"input": "five!"})
    value = await api.get(f"/v1/workflows/{run}/result", params={"wait": "60s"})

    assert ended.json()["state"] == "failed"
    assert none.status_code == 409
    assert preview.json()["again"] == again.json()["again"] == ["one"]
    assert value.json() == 5


async def test_a_definition_is_checked_without_a_start(api: AsyncClient) -> None:
    good = await api.post("/v1/workflows/check", json={"workflow": FLOW})
    bad = await api.post("/v1/workflows/check", json={"workflow": {"name": "x", "nodes": {"a": {"after": ["b"]}}}})

    assert good.json() == {"workflow": "flow", "nodes": 3, "layers": 3, "warnings": []}
    assert (bad.status_code, bad.json()["title"]) == (422, "Invalid workflow")
    assert (await api.get("/v1/workflows")).json()["items"] == []


async def test_a_workflow_is_drawn_and_its_path_told(api: AsyncClient) -> None:
    run = await start(api)
    await eventually_waits(api)
    drawn = await api.get(f"/v1/workflows/{run}/graph")
    path = (await api.get(f"/v1/workflows/{run}/trace")).json()

    assert drawn.headers["content-type"].startswith("text/plain")
    assert "gate" in drawn.text
    assert [one["name"] for one in path["below"]] == ["count", "gate", "last"]
