"""A client that knows nothing of Coditect reads a result in parts, as the wire format says."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from coditect import Agent
from tests.fleet import running
from tests.integration.wire import foreign
from tests.integration.wire.foreign import Answer, blocking
from tests.servers import Servers

pytestmark = pytest.mark.servers

PARTS = 6
AHEAD = 2


def _read(url: str, key: str) -> list[Answer]:
    """All messages of a stream of which two parts may be ahead; credit is given when the agent waits for it."""
    with foreign.channel(url) as opened:
        queue = foreign.own_queue(opened)
        headers = {"x-coditect-stream": AHEAD}
        asked = foreign.properties(reply_to=queue, correlation_id="42", headers=headers)
        opened.basic_publish("coditect.tasks", key, str(PARTS).encode(), asked, mandatory=True)
        got = foreign.answers(opened, queue, many=AHEAD, seconds=10)
        while got[-1].type == "coditect.part.v1":
            sent = got[-1].headers
            if not got[-1].body and "x-coditect-last" not in sent:
                until = sent["x-coditect-part"] + AHEAD
                body = json.dumps({"execution": sent["x-coditect-execution"], "until": until}).encode()
                credit = foreign.properties(type="coditect.credit.v1")
                opened.basic_publish("coditect.agents", f"mail.{sent['x-coditect-agent']}", body, credit)
            got += foreign.answers(opened, queue, many=1, seconds=10)
        return got


async def test_stranger_reads_a_result_in_parts(
    servers: Servers, capability: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coditect.agent.execution.WAITS_SECONDS", 0.2)
    agent = Agent("writer")

    @agent.capability(capability)
    async def count(most: int) -> AsyncIterator[int]:
        for number in range(most):
            yield number

    async with running(agent, servers):
        *parts, result = await blocking(_read, servers.amqp_url, f"{capability}.p1")

    assert [int(one.body) for one in parts if one.body] == list(range(PARTS))
    assert [one.headers["x-coditect-part"] for one in parts if not one.body] == [2, 4, PARTS]
    assert {one.correlation_id for one in parts} == {"42"}
    assert (result.status, result.body) == ("completed", b"6")
