"""Handoffs over HTTP: listed, shown and withdrawn."""

from __future__ import annotations

import asyncio

from httpx2 import AsyncClient

from coditect import Agent, Context, HandoffOffer
from coditect.testing import TestFleet

asker, slow = Agent("asker"), Agent("slow")


@asker.capability("note.write", timeout="5m")
async def write(text: str, ctx: Context) -> str:
    """Hand the note off, or say how the handoff ended."""
    return str((await ctx.hand_off("note.print", reason="too long", context=[text])).why)


@slow.capability("note.print")
async def print_note(text: str) -> str:
    """Print the note."""
    return text


@slow.on_handoff
async def decide(_: HandoffOffer) -> bool:
    """Accept after a while."""
    await asyncio.sleep(7)
    return True


async def test_an_open_handoff_is_listed_shown_and_withdrawn(fleet: TestFleet, api: AsyncClient) -> None:
    await fleet.add(asker)
    await fleet.add(slow)
    handle = await fleet.client.submit("note.write", "long", durable=True)
    while not (rows := (await api.get("/v1/handoffs", params={"open": True, "task": handle.task_id})).json()):
        await asyncio.sleep(0.1)
    path = f"/v1/handoffs/{rows[0]['handoff']}"
    shown = (await api.get(path)).json()
    withdrawn = (await api.post(f"{path}/withdraw", json={"reason": "keep it"})).json()

    assert await handle.result(str, timeout="5m") == "keep it"
    assert (shown["state"], shown["context"], rows[0]["context"]) == ("requested", ["long"], None)
    assert (withdrawn["state"], withdrawn["why"]) == ("withdrawn", "keep it")
    assert (await api.get("/v1/handoffs", params={"open": True})).json() == []
    assert (await api.get("/v1/handoffs/unknown")).status_code == 404
    assert (await api.post("/v1/handoffs/w:one.1/withdraw", json={})).status_code == 404
