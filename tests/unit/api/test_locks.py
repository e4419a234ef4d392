"""Locks and events over HTTP: acquired, refused with the holders, renewed and released by their fence; emitted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from httpx2 import AsyncClient

from coditect.errors import LockTaken
from coditect.testing import TestFleet
from tests.api import caller_that_leaves

DEPLOY = {"resources": ["site:shop"], "by": "ci", "reason": "release 17", "metadata": {"run": 17}}


async def test_a_lock_is_acquired_refused_to_others_renewed_and_released(fleet: TestFleet, api: AsyncClient) -> None:
    first = await api.post("/v1/locks", json=DEPLOY | {"ttl": "10s"})
    held, path = first.json(), f"/v1/locks/{first.json()['ticket']}"
    refused = await api.post("/v1/locks", json={"resources": ["site:shop"], "wait": False})
    in_vain = await api.post("/v1/locks", json={"resources": ["site:shop"], "timeout": "2s"})
    (row,) = (await api.get("/v1/locks")).json()
    await fleet.advance("5s")
    renewed = await api.post(f"{path}/renew", json={"fence": held["fence"]})
    await fleet.advance("8s")
    wrong = await api.post(f"{path}/release", json={"fence": held["fence"] + 1})
    released = await api.post(f"{path}/release", json={"fence": held["fence"]})
    lost = await api.post(f"{path}/renew", json={"fence": held["fence"]})
    again = await api.post(f"{path}/release", json={"fence": held["fence"]})

    holder = {"resource": "site:shop", "agent": "ci", "task": "", "fence": held["fence"], "reason": "release 17"}
    assert (first.status_code, held["resources"], held["fence"] > 0) == (201, ["site:shop"], True)
    assert [(one.status_code, one.json()["facts"]["holders"]) for one in (refused, in_vain)] == [(409, [holder])] * 2
    assert (row["agent"], row["reason"], row["metadata"]) == ("ci", "release 17", {"run": 17})
    assert 9_000 < renewed.json()["expires_in_ms"] <= 10_000
    assert [one.json()["released"] for one in (wrong, released, again)] == [False, True, False]
    assert (lost.status_code, lost.json()["type"]) == (409, "urn:coditect:problem:lock-lost")


async def test_a_waiting_caller_gets_the_lock_and_a_program_sees_the_reason(fleet: TestFleet, api: AsyncClient) -> None:
    held = (await api.post("/v1/locks", json=DEPLOY)).json()
    with pytest.raises(LockTaken) as refused:
        await fleet.client.lock("site:shop", wait=False).__aenter__()
    waiting = asyncio.create_task(api.post("/v1/locks", json={"resources": ["site:shop"]}))
    await fleet.advance("1s")
    released = await fleet.client.locks.release(held["ticket"], fence=held["fence"])
    second = (await waiting).json()

    holders: Any = refused.value.facts["holders"]
    assert [one["reason"] for one in holders] == ["release 17"]
    assert released
    assert second["fence"] > held["fence"]


async def test_a_caller_that_goes_away_waits_no_longer(fleet: TestFleet, api: AsyncClient) -> None:
    held = (await api.post("/v1/locks", json=DEPLOY)).json()
    async with caller_that_leaves(api, "/v1/locks", {"resources": ["site:shop"], "timeout": "5m"}):
        await fleet.advance("1s")
        before = [row.state async for row in fleet.client.locks.list()]
    await fleet.advance("1s")
    after = [row.ticket async for row in fleet.client.locks.list()]

    assert before == ["held", "waiting"]
    assert after == [held["ticket"]]
    assert fleet.elapsed_seconds < 10


async def test_what_is_no_lock_or_event_is_refused_by_name(api: AsyncClient) -> None:
    wrong = [
        await api.post("/v1/locks", json={"resources": []}),
        await api.post("/v1/locks", json={"resources": ["x"], "ttl": "2h"}),
        await api.post("/v1/locks", json={"resources": ["x"], "timeout": "6m"}),
        await api.post("/v1/locks", json={"resources": ["x"], "metadata": {"x": "x" * 5_000}}),
        await api.post("/v1/locks/none/renew", json={}),
        await api.post("/v1/events", json={"type": ""}),
    ]

    for kind in ("task.completed", "lock", "attempt.failed"):
        wrong.append(await api.post("/v1/events", json={"type": kind}))

    assert [one.status_code for one in wrong] == [422] * 9


async def test_an_event_is_emitted_in_the_name_of_its_caller(fleet: TestFleet, api: AsyncClient) -> None:
    event = {"type": "repo.pushed", "subject": "shop", "data": {"subject": "a", "type_": 1}, "by": "ci"}
    async with fleet.client.events("repo.*") as events:
        emitted = await api.post("/v1/events", json=event)
        heard = await anext(aiter(events))

    assert (emitted.status_code, emitted.json()["id"]) == (202, heard.id)
    assert (heard.type, heard.source, heard.subject) == ("repo.pushed", "/clients/ci", "shop")
    assert heard.data == {"subject": "a", "type_": 1}
