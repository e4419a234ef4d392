"""An agent and its tests in one file, to be copied as it stands: `pytest test_courier.py`."""

import asyncio
from dataclasses import dataclass

import pytest

from coditect import Agent, Context, Retry, TaskFailed
from coditect.testing import TestFleet

pytestmark = pytest.mark.asyncio

courier = Agent("courier", version="1.0.0", slots=2)


@dataclass
class Parcel:
    street: str
    somebody_opens_at: int = 1  # attempt


class NobodyAtHome(Exception):
    pass


@courier.capability("parcel.deliver", timeout="10m", retry=Retry(max_attempts=3, first="30m", cap="1h"))
async def deliver(parcel: Parcel, ctx: Context) -> str:
    """Bring a parcel to a door; raise an error when the door stays closed."""
    await asyncio.sleep(5 * 60)  # the way there
    if ctx.attempt < parcel.somebody_opens_at:
        raise NobodyAtHome(parcel.street)
    return f"{parcel.street}, by {ctx.agent_id}"


async def test_parcel_is_delivered_after_five_minutes() -> None:
    async with TestFleet(agents=[courier]) as fleet:
        assert await fleet.request("parcel.deliver", Parcel("High Street"), timeout="1h") == "High Street, by courier-1"
        assert fleet.elapsed_seconds == 300


@pytest.mark.parametrize("seed", range(5))
async def test_parcel_of_a_killed_courier_is_delivered_once_by_another(seed: int) -> None:
    async with TestFleet(agents=[courier], replicas=2, seed=seed) as fleet:
        handle = await fleet.submit("parcel.deliver", Parcel("High Street"))
        await fleet.advance("2m")
        [busy] = [one for one in fleet.agents if one.load.running]

        fleet.kill(busy.id)
        [other] = fleet.agents

        assert await handle.result(str, timeout="1h") == f"High Street, by {other.id}"
        assert [event.data["agent"] for event in fleet.events if event.type == "task.completed"] == [other.id]


async def test_closed_door_is_tried_again_later() -> None:
    async with TestFleet(agents=[courier]) as fleet:
        handle = await fleet.submit("parcel.deliver", Parcel("Low Street", somebody_opens_at=3))
        await fleet.advance("2d")

        assert handle.done
        assert [event.data["attempt"] for event in fleet.events if event.type == "task.started"] == [1, 2, 3]


async def test_door_that_stays_closed_ends_in_a_dead_letter() -> None:
    async with TestFleet(agents=[courier]) as fleet:
        handle = await fleet.submit("parcel.deliver", Parcel("No Street", somebody_opens_at=99))

        with pytest.raises(TaskFailed, match="No Street"):
            await handle.result(timeout="2d")

        [letter] = await fleet.dead_letters("parcel.deliver")
        assert (letter.attempts, letter.reason) == (3, "handler_error")
