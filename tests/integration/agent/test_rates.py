"""The rate of a capability over two agent processes on real servers, one of which is killed amid its tokens."""

from __future__ import annotations

from itertools import combinations
from math import ceil
from pathlib import Path

import pytest

from tests.integration.agent.fleet import Fleet, client_of
from tests.integration.agent.rated_agent import RATE
from tests.support import eventually

pytestmark = pytest.mark.servers

AGENT = str(Path(__file__).with_name("rated_agent.py"))
MANY = 400


def exceeds(began: list[float]) -> list[tuple[float, int]]:
    """The spans in which more executions began than the rate and its burst allow, with their numbers."""
    pairs = combinations(range(len(began)), 2)
    spans = [(began[last] - began[first], last - first + 1) for first, last in pairs]
    return [(span, count) for span, count in spans if count > ceil(RATE.per_second * span) + RATE.most_at_once]


async def test_two_processes_never_begin_more_than_rate_and_burst_in_any_span(fleet: Fleet) -> None:
    first = await fleet.start(target=AGENT)
    await fleet.start(target=AGENT)
    async with client_of(fleet.servers) as client:
        handles = [handle async for handle in client.submit_many("page.fetch", list(range(MANY)))]
        await eventually(lambda: len(fleet.effects()) >= MANY // 2)
        first.kill()

        assert [await handle.result(int, timeout=60) for handle in handles] == list(range(MANY))

    effects = fleet.effects()
    began = sorted(float(at) for at, _, _ in effects)
    assert len({pid for _, _, pid in effects}) == 2
    assert exceeds(began) == []
    assert began[-1] - began[0] <= 3 * MANY / RATE.per_second, "the rate is used, also after the death"
