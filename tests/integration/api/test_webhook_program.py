"""`coditect api` on real servers posts a fleet's events to a webhook, also those that happen while it is dead."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from standardwebhooks import Webhook

from coditect.local import PrivateServers
from tests.integration.agent.fleet import Fleet, open_fleet
from tests.servers import ROOT
from tests.support import eventually
from tests.unit.api.test_webhook_attempts import Endpoint, endpoint

pytestmark = pytest.mark.servers

SETTINGS = {"CODITECT_API_WEBHOOK_KEY": "k" * 40, "CODITECT_PRIVATE_ADDRESSES": "webhooks"}


@pytest.fixture
async def fleet(own_servers: PrivateServers, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with open_fleet(own_servers, tmp_path) as fleet:
        await fleet.run("coditect", "dispatcher", "run", "--store", f"sqlite:{tmp_path / 'ledger.db'}")
        await fleet.start(target=str(ROOT / "agents" / "load.py"))
        yield fleet


async def webhook(fleet: Fleet, receiving: Endpoint, kind: str) -> str:
    """The secret of a new webhook for events of a kind."""
    words = ("webhook", "create", "pager", receiving.url, "--kind", kind, "--output", "json")
    return str(json.loads(await fleet.coditect(*words, **SETTINGS))["secret"])


def subjects(receiving: Endpoint, secret: str) -> list[str]:
    """What the events that came are about, after a check of their signatures."""
    return [Webhook(secret).verify(body, headers)["subject"] for headers, body in receiving.requests]


@pytest.mark.proof
async def test_events_reach_a_webhook_also_those_of_a_time_without_an_api(fleet: Fleet) -> None:
    task = ("task", "submit", "load.work", '{"milliseconds": 1}', "--output", "json")
    async with endpoint() as receiving:
        api, _ = await fleet.api(**SETTINGS)
        secret = await webhook(fleet, receiving, "task.completed")
        await fleet.coditect(*task)
        await eventually(lambda: len(subjects(receiving, secret)) == 1, seconds=60)

        api.kill()
        await fleet.coditect(*task)
        await fleet.api(**SETTINGS)
        await eventually(lambda: len(set(subjects(receiving, secret))) == 2, seconds=60)
        tested = json.loads(await fleet.coditect("webhook", "test", "pager", "--output", "json", **SETTINGS))
        listed = json.loads(await fleet.coditect("webhook", "list", "--output", "json", **SETTINGS))

    assert tested["status"] == 204
    assert listed[0]["state"] == "active"
    assert "secret" not in listed[0]


async def test_an_approval_that_is_asked_for_is_posted_signed_and_its_answer_goes_on(fleet: Fleet) -> None:
    nodes = {
        "ship_it": {"approval": "May it go out?"},
        "work": {"task": "load.work", "input": {"milliseconds": 1}, "after": ["ship_it"]},
    }
    (file := fleet.folder / "release.json").write_text(json.dumps({"name": "release", "nodes": nodes}))
    async with endpoint() as receiving:
        await fleet.api(**SETTINGS)
        secret = await webhook(fleet, receiving, "approval.asked")
        running = asyncio.create_task(fleet.coditect("workflow", "start", str(file), "--output", "json"))
        await eventually(lambda: len(receiving.requests) > 0, seconds=60)
        headers, body = receiving.requests[0]
        event = Webhook(secret).verify(body, headers)
        await fleet.coditect("approval", "grant", f"{event['subject']}:{event['data']['node']}")
        ended = json.loads(await running)

    assert (event["type"], event["data"]["node"]) == ("approval.asked", "ship_it")
    assert event["data"]["question"] == "May it go out?"
    assert ended["state"] == "completed"
