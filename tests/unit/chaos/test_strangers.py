"""What strangers send costs nobody else anything: each kind by itself, on a simulated fleet without any other fault."""

from __future__ import annotations

from random import Random

import pytest

from chaos.faults.strangers import DRAWN, HANDS_FULL, PREFIX, Strangers
from chaos.history import Notebook, Type
from chaos.load.work import CAPABILITY, MOST_ATTEMPTS, EffectTable, working_agent
from coditect.broker.memory import MemoryBroker
from coditect.model.capability import Priority
from coditect.testing import TestFleet
from coditect.wire import routing

MOST_SECONDS = "2m"


@pytest.mark.parametrize("kind", DRAWN)
async def test_what_a_stranger_sends_ends_after_few_attempts_and_leaves_the_others_alone(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chaos.faults.strangers.DRAWN", {kind: DRAWN[kind]})
    notebook = Notebook(lambda: 0.0)

    def note(type_: Type, f: str, key: str = "", **val: object) -> None:
        notebook.of("agent")(type_, f, key, **val)

    agent = working_agent("agent", note=note, effects=EffectTable())
    async with TestFleet([agent], seed=3) as fleet, MemoryBroker(fleet.server, name="stranger") as broker:
        await Strangers(broker, notebook.of("chaos"), Random(1)).send()
        ours = await fleet.request(CAPABILITY, {"milliseconds": 1}, timeout="10s")
        await fleet.advance(MOST_SECONDS)
        left = [fleet.server.queue(routing.task_queue(CAPABILITY, level)) for level in Priority]

        assert [(one.stats.messages, one.in_hand) for one in left] == [(0, 0)] * len(left)
    sent = [one for one in notebook.entries if one.f == "stranger" and one.type is Type.OK]
    ran = [one for one in notebook.entries if one.f == "execute" and one.type is Type.INVOKE and PREFIX in one.key]
    assert (len(sent), ours["agent"]) == (HANDS_FULL, "agent-1")
    assert len(ran) <= HANDS_FULL * MOST_ATTEMPTS


async def test_a_request_arrives_again_until_it_expires_and_never_later() -> None:
    async with TestFleet() as fleet, MemoryBroker(fleet.server, name="stranger") as broker:
        strangers = Strangers(broker, Notebook(lambda: 0.0).of("chaos"), Random(1))
        await strangers.listen()
        async with fleet.client.lock("x", ttl="1h"):
            pass
        await fleet.advance("1s")
        before = fleet.client._requests.strays.value

        await strangers.repeat()
        await fleet.advance("1s")
        answered_again = fleet.client._requests.strays.value - before
        await fleet.advance("2h")
        await strangers.repeat()
        await fleet.advance("1s")

        assert [row async for row in fleet.client.locks.list()] == []
    assert (answered_again, fleet.client._requests.strays.value - before) == (2, 2)
