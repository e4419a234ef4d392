"""Tasks that bear the same id: the same question is answered once, another one is another task."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from coditect import Agent, Context, Retry
from coditect.broker.memory import MemoryBroker
from coditect.model.message import Message
from coditect.testing import TestFleet
from coditect.wire import routing
from coditect.wire.json import loads
from tests.unit.agent.scene import answers


def _prices(asked: list[str]) -> Agent:
    agent = Agent("prices", slots=4)

    @agent.capability("price.of")
    async def price(name: str) -> str:
        asked.append(name)
        return f"price of {name}"

    @agent.capability("stock.of")
    async def stock(name: str) -> str:
        asked.append(name)
        return f"stock of {name}"

    return agent


@settings(max_examples=10, deadline=None)
@given(
    tasks=st.lists(st.tuples(st.sampled_from(["price", "stock"]), st.sampled_from("ab"), st.booleans()), max_size=8),
)
def test_each_publisher_gets_the_answer_to_its_own_question(tasks: list[tuple[str, str, bool]]) -> None:
    asyncio.run(_asked(tasks))


async def _asked(tasks: list[tuple[str, str, bool]]) -> None:
    ran: list[str] = []
    async with TestFleet(agents=[_prices(ran)]) as fleet, MemoryBroker(fleet.server, name="stranger") as stranger:
        arrived = await answers(stranger)
        for number, (what, name, waits) in enumerate(tasks):
            message = Message(f'"{name}"'.encode(), message_id="same", correlation_id=str(number), reply_to="answers")
            await stranger.publish(message, exchange=routing.TASKS, routing_key=f"{what}.of.p1")
            if waits:
                await fleet.settled()
        await fleet.settled()

        told = {one.message.correlation_id: loads(one.message.body) for one in arrived}
        assert told == {str(number): f"{what} of {name}" for number, (what, name, _) in enumerate(tasks)}
        assert len(ran) == len({(what, name) for what, name, _ in tasks}), "the same question is answered from memory"


@settings(max_examples=10, deadline=None)
@given(first=st.permutations("aabbc"), second=st.permutations("aabbc"))
def test_parent_that_asks_again_in_another_order_gets_what_it_asks_for(first: list[str], second: list[str]) -> None:
    asyncio.run(_asked_again([first, second]))


async def _asked_again(orders: list[list[str]]) -> None:
    ran: list[str] = []
    got: list[tuple[str, Any]] = []
    parent = Agent("parent")

    @parent.capability("ask.all", retry=Retry(max_attempts=2, first="100ms"))
    async def ask(_: None, ctx: Context) -> None:
        for name in orders[ctx.attempt - 1]:
            got.append((name, await ctx.request("price.of", name)))
        if ctx.attempt == 1:
            raise ValueError("again")

    async with TestFleet(agents=[parent, _prices(ran)]) as fleet:
        handle = await fleet.submit("ask.all")
        await handle.result(timeout="1m")

        assert got == [(name, f"price of {name}") for order in orders for name in order]
        assert len(ran) == 5, "the second attempt finds the children of the first"
