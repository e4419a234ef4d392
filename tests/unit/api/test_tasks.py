"""Tasks over HTTP: submitted, waited for, asked for later."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from httpx2 import AsyncClient

from coditect import Agent
from coditect.testing import TestFleet
from tests.api import api_of


async def test_a_task_that_is_waited_for_answers_with_its_value(api: AsyncClient) -> None:
    answer = await api.post("/v1/tasks", json={"capability": "text.count", "input": "four"}, params={"wait": "5s"})

    assert answer.status_code == 200
    assert answer.json()["status"] == "completed"
    assert answer.json()["value"] == 4


async def test_a_direct_task_s_result_is_asked_for_later(api: AsyncClient) -> None:
    submitted = await api.post("/v1/tasks", json={"capability": "text.count", "input": "four"})
    later = await api.get(submitted.headers["location"], params={"wait": "5s"})
    again = await api.get(submitted.headers["location"])

    assert submitted.status_code == 202
    assert submitted.json()["status"] == "submitted"
    assert later.json()["value"] == again.json()["value"] == 4


async def test_a_durable_task_is_kept_by_the_control_plane(api: AsyncClient) -> None:
    submitted = await api.post("/v1/tasks", json={"capability": "text.count", "input": "four", "durable": True})
    later = await api.get(submitted.headers["location"], params={"wait": "60s"})

    assert submitted.status_code == 202
    assert (later.json()["status"], later.json()["value"], len(later.json()["attempts"])) == ("completed", 4, 1)


async def test_a_failed_task_is_an_answer_and_no_error(api: AsyncClient) -> None:
    order = {"capability": "text.count", "input": "", "max_attempts": 1}
    answer = await api.post("/v1/tasks", json=order, params={"wait": "60s"})

    assert answer.status_code == 200
    assert answer.json()["status"] == "failed"
    assert answer.json()["failure"]["message"] == "there is no text"


async def test_a_task_that_does_not_end_in_time_goes_on(fleet: TestFleet, api: AsyncClient) -> None:
    fleet.pause("counter")

    answer = await api.post("/v1/tasks", json={"capability": "text.count", "input": "x"}, params={"wait": "100ms"})
    fleet.resume("counter")
    later = await api.get(answer.headers["location"], params={"wait": "60s"})

    assert (answer.status_code, answer.json()["status"]) == (202, "submitted")
    assert later.json()["value"] == 1


async def test_a_duration_without_a_unit_is_told_in_words(api: AsyncClient) -> None:
    answer = await api.post("/v1/tasks?wait=2", json={"capability": "text.count", "timeout": "2"})

    mistakes = {one["at"]: one for one in answer.json()["mistakes"]}
    assert answer.status_code == 422
    assert set(mistakes) == {"query.wait", "body.timeout"}
    assert "30s" in mistakes["query.wait"]["fix"]
    assert "[0-9]" not in answer.text


async def test_an_idempotency_key_of_another_request_is_refused(api: AsyncClient) -> None:
    order, headers = {"capability": "text.count", "input": {"text": "four", "by": 1}}, {"idempotency-key": "k1"}
    workflow = {"workflow": {"name": "w", "nodes": {"a": {"task": "text.count", "input": "four"}}}}

    mistaken = await api.post("/v1/tasks", json=order | {"capability": "no.such"}, headers=headers)
    first = await api.post("/v1/tasks", json=order, headers=headers)
    repeated = await api.post("/v1/tasks", json=order | {"input": {"by": 1, "text": "four"}}, headers=headers)
    other = await api.post("/v1/tasks", json=order | {"input": {"text": "five", "by": 1}}, headers=headers)
    started = await api.post("/v1/workflows", json=workflow, headers=headers)
    keyed = await api.post("/v1/tasks", json=order, headers={"idempotency-key": "k2"})

    assert [one.status_code for one in (mistaken, first, repeated, other, started)] == [422, 202, 202, 422, 422]
    assert repeated.json()["task_id"] == first.json()["task_id"] != keyed.json()["task_id"]
    assert "another key" in other.json()["fix"]
    assert "Idempotency-Key" in started.json()["detail"]


async def test_a_key_of_another_request_is_refused_by_another_process_of_the_api(fleet: TestFleet) -> None:
    order, headers = {"capability": "text.count", "input": "four"}, {"idempotency-key": "k1"}
    async with api_of(fleet) as first, api_of(fleet) as second:
        taken = await first.post("/v1/tasks", json=order, headers=headers)
        same = await second.post("/v1/tasks", json=order | {"priority": "p1"}, headers=headers)
        other = await second.post("/v1/tasks", json=order | {"priority": "p0"}, headers=headers)

    assert (taken.status_code, same.status_code, other.status_code) == (202, 202, 422)
    assert same.json()["task_id"] == taken.json()["task_id"]
    assert other.json()["type"] == "urn:coditect:problem:input-error"


async def test_a_task_is_canceled(fleet: TestFleet, api: AsyncClient) -> None:
    fleet.pause("counter")
    order = {"capability": "text.count", "input": "four", "durable": True}
    task = (await api.post("/v1/tasks", json=order)).json()["task_id"]

    canceled = await api.post(f"/v1/tasks/{task}/cancel")
    fleet.resume("counter")
    ended = await api.get(f"/v1/tasks/{task}", params={"wait": "60s"})
    unknown = await api.post("/v1/tasks/01890a5d-ac96-774b-bcce-b302099a8057/cancel")

    assert canceled.json() == {"durable": True}
    assert ended.json()["status"] == "canceled"
    assert unknown.status_code == 404


async def test_it_is_said_why_no_agent_takes_a_task(fleet: TestFleet, api: AsyncClient) -> None:
    before = (await api.get("/v1/capabilities/text.count/why-not")).json()["verdict"]
    await fleet.drain("counter")
    verdict = (await api.get("/v1/capabilities/text.count/why-not")).json()["verdict"]

    assert (before["takes"], verdict["takes"]) == (True, False)
    assert "No agent offers text.count" in verdict["sentence"]
    assert verdict["fix"]


async def test_bytes_are_submitted_in_base64(fleet: TestFleet, api: AsyncClient) -> None:
    sizer = Agent("sizer", version="1.0.0")

    @sizer.capability("bytes.size")
    async def size(content: bytes) -> int:
        """Count bytes."""
        return len(content)

    await fleet.add(sizer)
    order = {"capability": "bytes.size", "input_base64": "AAEC/w=="}
    sized = await api.post("/v1/tasks", json=order, params={"wait": "5s"})
    twice = await api.post("/v1/tasks", json=order | {"input": 1})
    wrong = await api.post("/v1/tasks", json=order | {"input_base64": "?"})

    assert sized.json()["value"] == 4
    assert (twice.status_code, wrong.status_code) == (422, 422)


async def test_the_path_of_a_durable_task_is_told(api: AsyncClient) -> None:
    order = {"capability": "text.count", "input": "four", "durable": True}
    task = (await api.post("/v1/tasks", json=order, params={"wait": "60s"})).json()["task_id"]

    assert (await api.get(f"/v1/tasks/{task}/trace")).json()["state"] == "completed"


async def test_a_result_in_parts_is_followed_to_its_end(fleet: TestFleet, api: AsyncClient) -> None:
    teller = Agent("teller", version="1.0.0")

    @teller.capability("text.words")
    async def words(text: str) -> AsyncIterator[str]:
        """Yield words."""
        for word in text.split():
            yield word
        if text.endswith("!"):
            raise ValueError("not so loud")

    await fleet.add(teller)
    good = await api.post("/v1/tasks/stream", json={"capability": "text.words", "input": "one two"})
    bad = await api.post("/v1/tasks/stream", json={"capability": "text.words", "input": "one !", "max_attempts": 1})

    submitted, one, two, end = good.text.strip().split("\n\n")
    assert good.headers["content-type"].startswith("text/event-stream")
    assert submitted.startswith("event: submitted")
    assert (one, two) == ('data: "one"', 'data: "two"')
    assert json.loads(end.partition("data: ")[2])["status"] == "completed"
    assert json.loads(bad.text.strip().rpartition("data: ")[2])["failure"]["message"] == "not so loud"
