"""The shop of the examples, as a fleet."""

from __future__ import annotations

import pytest

from coditect import TaskFailed
from coditect.testing import TestFleet
from examples.orders import Order, orders
from examples.prices import Item, Price, prices

BASKET = Order([Item("tea", 2), Item("coffee")])


async def test_order_costs_what_its_items_cost() -> None:
    async with TestFleet(agents=[orders, prices]) as fleet:
        assert await fleet.request("order.total", BASKET, Price) == Price(820)


@pytest.mark.parametrize("seed", range(5))
async def test_orders_survive_the_death_of_either_agent(seed: int) -> None:
    async with TestFleet(agents=[orders, prices], replicas=2, seed=seed) as fleet:
        handles = [await fleet.submit("order.total", BASKET) for _ in range(10)]
        fleet.kill("orders-1")
        fleet.kill("prices-2")

        assert [await handle.result(Price) for handle in handles] == [Price(820)] * 10


async def test_unknown_thing_fails_the_order_at_once() -> None:
    async with TestFleet(agents=[orders, prices]) as fleet:
        with pytest.raises(TaskFailed, match="This shop does not sell it"):
            await fleet.request("order.total", Order([Item("gold")]))


async def test_order_without_anybody_who_knows_prices_is_given_up_after_ten_seconds() -> None:
    async with TestFleet(agents=[orders, prices]) as fleet:
        await fleet.drain("prices")
        handle = await fleet.submit("order.total", BASKET)

        with pytest.raises(TaskFailed):
            await handle.result(timeout="1h")

        assert [letter.attempts for letter in await fleet.dead_letters("order.total")] == [1]
        assert fleet.elapsed_seconds == 10
