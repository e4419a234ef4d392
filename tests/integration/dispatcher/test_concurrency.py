"""Concurrency by key over two agent processes on real servers, one of which is killed while it holds a key."""

from __future__ import annotations

from pathlib import Path

import pytest

from coditect.client.client import Client
from coditect.client.handle import Handle
from coditect.local import PrivateServers
from tests.integration.agent.fleet import Fleet, client_of, open_fleet
from tests.integration.dispatcher.test_take_over import dispatcher
from tests.support import eventually

pytestmark = [pytest.mark.servers, pytest.mark.slow, pytest.mark.timeout(240)]

AGENT = str(Path(__file__).with_name("builds_agent.py"))


async def build(client: Client, repo: str, number: int, seconds: float) -> Handle:
    return await client.submit("repo.build", {"repo": repo, "number": str(number), "seconds": str(seconds)})


def begun(fleet: Fleet, repo: str) -> list[int]:
    """The numbers of the builds of a repository in the order in which they began."""
    return [int(number) for what, of, number, _, _ in fleet.effects() if (what, of) == ("begin", repo)]


def overlaps(fleet: Fleet, repo: str, *, but: str = "") -> int:
    """How often a build began while another of the same repository ran; without those of the process `but`."""
    running, found = set[str](), 0
    for what, of, number, _, pid in fleet.effects():
        if of == repo and pid != but:
            found += what == "begin" and bool(running)
            (running.add if what == "begin" else running.discard)(number)
    return found


async def test_builds_of_a_repository_exclude_each_other_over_processes_and_others_go_on(
    own_servers: PrivateServers, tmp_path: Path
) -> None:
    async with open_fleet(own_servers, tmp_path) as fleet, client_of(own_servers) as client:
        await dispatcher(fleet)
        await fleet.start(target=AGENT)
        await fleet.start(target=AGENT)
        blocked = await build(client, "blocked", 0, 30.0)
        builds = []
        for number in range(12):
            builds.append(await build(client, "app", number, 0.1))
            await eventually(lambda many=number: len(begun(fleet, "app")) >= many // 2)  # type: ignore[misc]
        waiting = [await build(client, "blocked", number, 0.1) for number in (1, 2)]

        assert [await one.result(int, timeout=60) for one in builds] == [1] * 12
        assert begun(fleet, "blocked") == [0], "the other repository went on meanwhile"
        pid = next(pid for what, of, _, _, pid in fleet.effects() if (what, of) == ("begin", "blocked"))
        next(one for one in fleet.processes if str(one.pid) == pid).kill()

        assert [await one.result(int, timeout=120) for one in (blocked, *waiting)]
        assert len({pid for *_, pid in fleet.effects()}) == 2

    assert overlaps(fleet, "app") == 0
    assert overlaps(fleet, "blocked", but=pid) == 0
    assert set(begun(fleet, "app")) == set(range(12))
