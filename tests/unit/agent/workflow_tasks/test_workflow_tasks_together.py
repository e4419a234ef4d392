"""Results of one moment travel in one message, if each of them may."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from coditect import Agent
from coditect.model.result import Status
from coditect.wire.workflow_tasks import BATCH_BYTES_LIMIT, LONGEST_BYTES, MAX_BATCHED_RESULTS
from tests.owner import ScriptedOwner, granting
from tests.support import eventually
from tests.unit.agent.scene import Scene

LONG = "x" * LONGEST_BYTES
NEARLY_LONG = "x" * (LONGEST_BYTES - 2)


class Gated:
    """An agent whose handlers all end in one moment."""

    def __init__(self, slots: int) -> None:
        self.begun = 0
        self.gate = asyncio.Event()
        self.agent = Agent("gated", slots=4 + 2 * slots)

        @self.agent.capability("work.do")
        async def do(wanted: Any) -> Any:
            self.begun += 1
            await self.gate.wait()
            if wanted == "fail":
                raise ValueError("on purpose")
            return wanted

    async def end(self, scene: Scene, owner: ScriptedOwner, wanted: Sequence[Any]) -> None:
        """What they were given, all at once."""
        owner.decide = granting(fence=1)  # an agent that is held up by a busy machine asks before it begins
        await scene.start(self.agent)
        for number, one in enumerate(wanted):
            await owner.publish("work.do", one, node=f"n{number}")
        await eventually(lambda: self.begun == len(wanted))
        self.gate.set()
        await eventually(lambda: len(owner.results) == len(wanted))


async def told(scene: Scene, owner: ScriptedOwner, wanted: Sequence[Any]) -> list[str]:
    """The types of the messages that told how these ended."""
    await Gated(len(wanted)).end(scene, owner, wanted)
    return sorted(str(one.type) for one in owner.messages)


async def test_values_of_one_moment_travel_together(scene: Scene, owner: ScriptedOwner) -> None:
    assert await told(scene, owner, [1, "two", None, [3]]) == ["coditect.results.v1"]

    bodies = {one.owner.node: one.outcome.body for one in owner.results}
    assert bodies == {"n0": b"1", "n1": b'"two"', "n2": b"null", "n3": b"[3]"}
    assert {one.owner.origin for one in owner.results} == {str(owner.shard)}
    await scene.acked("work.do")


async def test_a_lone_one_and_what_is_long_or_failed_has_a_message_of_its_own(
    scene: Scene, owner: ScriptedOwner
) -> None:
    assert await told(scene, owner, [1, LONG, "fail"]) == ["coditect.result.v1"] * 3

    assert [one.outcome.status for one in owner.results].count(Status.COMPLETED) == 2


@pytest.mark.parametrize(
    ("wanted", "messages"),
    [
        ([0] * (MAX_BATCHED_RESULTS + 2), 2),
        ([NEARLY_LONG] * (2 + BATCH_BYTES_LIMIT // LONGEST_BYTES), 2),
    ],
    ids=["many", "large"],
)
async def test_a_message_has_no_more_than_so_many(
    scene: Scene, owner: ScriptedOwner, wanted: Sequence[Any], messages: int
) -> None:
    assert await told(scene, owner, wanted) == ["coditect.results.v1"] * messages

    assert max(len(one.body) for one in owner.messages) < BATCH_BYTES_LIMIT + MAX_BATCHED_RESULTS * 200


async def test_what_nobody_took_is_told_again_each_by_itself(
    scene: Scene, owner: ScriptedOwner, caplog: pytest.LogCaptureFixture
) -> None:
    gated = Gated(3)
    await gated.end(scene, owner, ["this shard exists"])
    gated.gate.clear()
    owner.results.clear()
    for number in range(3):
        await owner.publish("work.do", number, node=f"n{number}")
    await eventually(lambda: gated.begun == 4)
    await owner.leave()

    gated.gate.set()
    await eventually(lambda: caplog.text.count("A result has no owner") == 3)
    owner.decide = granting(fence=5)
    await owner.open()

    await eventually(lambda: len(owner.results) == 3)
    assert sorted((one.owner.node, one.owner.fence) for one in owner.results) == [("n0", 5), ("n1", 5), ("n2", 5)]
    assert gated.begun == 4
