"""Large values on real servers: what a stranger takes off the broker is small, and fits the schema."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from coditect import Agent, Client
from coditect.blobs import open_blobs
from coditect.settings.settings import Settings
from tests.fleet import running
from tests.integration.wire import foreign
from tests.integration.wire.foreign import blocking
from tests.integration.wire.schemas import as_json, complaints
from tests.servers import Servers

pytestmark = pytest.mark.servers


async def test_large_input_and_result_travel_as_claims_between_us_and_strangers(
    servers: Servers, settings: Settings, capability: str, tmp_path: Path
) -> None:
    url = f"file://{tmp_path}/blobs"
    agent = Agent("doubler")

    @agent.capability(capability)
    async def double(text: str) -> str:
        return text + text

    text = "é" * 5_000_000
    async with running(agent, servers, settings=replace(settings, blob_url=url)) as fleet:
        blobs = open_blobs(url, most_bytes=settings.blob_max_bytes)
        async with Client(fleet.broker, fleet.registry, blobs=blobs) as client:
            assert await client.request(capability, text, str) == text + text

        claim = await blobs.put(json.dumps("short").encode())
        key = f"{capability}.p1"
        headers = {"x-coditect-claim": "coditect.claim.v1"}
        inline = await blocking(foreign.ask, servers.amqp_url, key, claim.document, headers=headers)
        claimed = await blocking(foreign.ask, servers.amqp_url, key, json.dumps("y" * 900_000).encode())

    assert json.loads(inline.body) == "shortshort"
    assert json.loads(claimed.body)["$claim"]["bytes"] == 1_800_002
    assert "x-coditect-claim" not in inline.headers
    assert [complaints("result", as_json(one.properties, one.body)) for one in (inline, claimed)] == [[], []]
