"""`coditect api` on real servers posts a fleet's events to a webhook, also those that happen while it is dead."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from standardwebhooks import Webhook

from tests.servers import ROOT
from tests.support import eventually
from tests.unit.api.test_webhook_attempts import Endpoint, endpoint

pytestmark = pytest.mark.servers

SETTINGS = {
    "CODITECT_API_WEBHOOK_KEY": "k" * 40,
    "CODITECT_API_WEBHOOK_PRIVATE": "true",
    "CODITECT_API_PORT": "0",
}


class Folder:
    """A folder in which `coditect up` runs a fleet of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    async def run(self, *words: str) -> str:
        """The output of a command that succeeds."""
        servers = ("CODITECT_AMQP_URL", "CODITECT_REDIS_URL", "CODITECT_MANAGEMENT_URL", "CODITECT_STORE_URL")
        environ = {name: value for name, value in os.environ.items() if name not in servers} | SETTINGS
        program = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "coditect", *words, cwd=self.path, env=environ, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await program.communicate()
        assert program.returncode == 0, words
        return output.decode()


@asynccontextmanager
async def fleet(path: Path) -> AsyncIterator[tuple[Folder, int]]:
    """A fleet with one agent, and the process id of its API."""
    folder = Folder(path)
    try:
        state = json.loads(await folder.run("up", "--detach", "--output", "json", f"{ROOT / 'agents' / 'load.py'}=1"))
        yield folder, next(one["pid"] for one in state["programs"] if one["name"] == "api")
    finally:
        await folder.run("down")


def subjects(receiving: Endpoint, secret: str) -> list[str]:
    """What the events that came are about, after a check of their signatures."""
    return [Webhook(secret).verify(body, headers)["subject"] for headers, body in receiving.requests]


async def test_events_reach_a_webhook_also_those_of_a_time_without_an_api(tmp_path: Path) -> None:
    async with endpoint() as receiving, fleet(tmp_path) as (folder, api):
        added = json.loads(
            await folder.run("webhook", "add", "pager", receiving.url, "--kind", "task.completed", "-o", "json")
        )
        task = ("task", "submit", "load.work", '{"milliseconds": 1}', "--output", "json")
        await folder.run(*task)
        await eventually(lambda: len(subjects(receiving, added["secret"])) == 1, seconds=60)

        psutil.Process(api).kill()
        await folder.run(*task)
        await eventually(lambda: len(set(subjects(receiving, added["secret"]))) == 2, seconds=60)
        tested = json.loads(await folder.run("webhook", "test", "pager", "--output", "json"))
        listed = json.loads(await folder.run("webhook", "list", "--output", "json"))

    assert tested["status"] == 204
    assert listed[0]["state"] == "active"
    assert "secret" not in listed[0]


async def test_an_approval_that_is_asked_for_is_posted_signed_and_its_answer_goes_on(tmp_path: Path) -> None:
    nodes = {
        "ship_it": {"approval": "May it go out?"},
        "work": {"task": "load.work", "input": {"milliseconds": 1}, "after": ["ship_it"]},
    }
    (tmp_path / "release.json").write_text(json.dumps({"name": "release", "nodes": nodes}))
    async with endpoint() as receiving, fleet(tmp_path) as (folder, _):
        added = json.loads(
            await folder.run("webhook", "add", "people", receiving.url, "--kind", "approval.asked", "-o", "json")
        )
        running = asyncio.create_task(folder.run("workflow", "run", "release.json", "--output", "json"))
        await eventually(lambda: len(receiving.requests) > 0, seconds=60)
        headers, body = receiving.requests[0]
        event = Webhook(added["secret"]).verify(body, headers)
        await folder.run("approval", "grant", event["subject"], event["data"]["node"])
        ended = json.loads(await running)

    assert (event["type"], event["data"]["node"]) == ("approval.asked", "ship_it")
    assert event["data"]["question"] == "May it go out?"
    assert ended["state"] == "completed"
