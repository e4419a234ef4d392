"""Threads over HTTP, from their opening to their close."""

from __future__ import annotations

from httpx2 import AsyncClient


async def test_a_thread_is_opened_spoken_in_shown_and_closed(api: AsyncClient) -> None:
    opened = await api.post("/v1/threads", json={"participants": ["writer"], "by": "ada", "title": "which?"})
    path = f"/v1/threads/{opened.json()['thread']}"
    first = await api.post(f"{path}/messages", json={"value": {"a": 1}, "type": "question", "by": "writer"})
    second = await api.post(f"{path}/messages", json={"value": "this", "by": "ada", "answers": 1})
    stranger = await api.post(f"{path}/messages", json={"value": "x", "by": "eve"})
    missing = await api.post(f"{path}/messages", json={"value": "x", "by": "ada", "answers": 9})
    shown = (await api.get(path, params={"after": 1})).json()
    listed = (await api.get("/v1/threads", params={"participant": "ada", "open": True})).json()
    closed = await api.post(f"{path}/close", json={"reason": "done"})
    late = await api.post(f"{path}/messages", json={"value": "x", "by": "ada"})
    after = (await api.get("/v1/threads", params={"open": True})).json()

    assert (opened.status_code, first.status_code, first.json()["number"], second.json()["number"]) == (201, 201, 1, 2)
    assert (stranger.status_code, missing.status_code, late.status_code) == (422, 404, 422)
    assert [(one["value"], one["to"], one["type"]) for one in shown["messages"]] == [("this", ["writer"], "answer")]
    assert [one["title"] for one in listed] == ["which?"]
    assert (closed.json()["reason"], after) == ("done", [])
    assert (await api.get("/v1/threads/unknown")).status_code == 404
