"""Lessons over HTTP: listed and forgotten."""

from __future__ import annotations

from httpx2 import AsyncClient

from coditect.testing import TestFleet


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
