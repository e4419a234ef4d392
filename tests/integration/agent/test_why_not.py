"""`coditect task why-not` beside agents at work on real servers."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest

from coditect.client.handle import Handle
from tests.integration.agent.fleet import Fleet, client_of
from tests.support import eventually

pytestmark = pytest.mark.servers


async def why_not(fleet: Fleet, *words: str) -> tuple[int, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "coditect", "task", "why-not", *words, "--output", "json"),
        env=fleet.environment(),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    return process.returncode or 0, json.loads(out)


def states(document: Any) -> list[str | None]:
    return [agent["obstacle"] for agent in document["agents"]]


@pytest.mark.endurance
async def test_busy_fleet_says_who_works_and_what_waits(fleet: Fleet) -> None:
    await fleet.start("--slots", "2")
    async with client_of(fleet.servers) as client:
        assert states((await why_not(fleet, "work.do"))[1]) == [None]
        handles = [await client.submit("work.do", 60_000) for _ in range(4)]

        async def busy() -> bool:
            return states((await why_not(fleet, "work.do"))[1]) == ["kept_for_p0"]

        await eventually(busy)
        code, document = await why_not(fleet, "work.do", "-p", "p0")
        assert (code, states(document), document["takes"]) == (0, [None], True)

        places = [await _place(fleet, handle) for handle in handles]
        assert sorted(places) == ["waiting", "waiting", "waiting", "working"]
        places = [await _place(fleet, handle) for handle in handles]
        assert sorted(places) == ["waiting", "waiting", "waiting", "working"]

        for handle in handles:
            await handle.cancel()
        for handle in handles:
            assert (await handle.outcome(timeout="100s")).status == "canceled"
        code, document = await why_not(fleet, handles[0].task_id, "-c", "work.do")
        assert (code, document["task"]["seen"], document["task"]["agents_asked"]) == (4, [], 1)


async def test_capability_that_nobody_offers_names_the_nearest(fleet: Fleet) -> None:
    await fleet.start()

    code, document = await why_not(fleet, "work.doo")

    assert (code, document["nearest"][0]) == (4, "work.do")
    assert states(document) == ["not_offered"]


async def _place(fleet: Fleet, handle: Handle) -> str:
    _, document = await why_not(fleet, handle.task_id, "-c", "work.do")
    return str(document["task"]["seen"][0]["place"])
