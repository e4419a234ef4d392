"""An agent that asks another agent; the asking task holds no slot while it waits."""

from dataclasses import dataclass

from coditect import Agent, Context
from examples.prices import Item, Price

orders = Agent("orders", version="1.0.0", slots=1, tags={"shop"})


@dataclass
class Order:
    items: list[Item]


@orders.capability("order.total", timeout="30s")
async def total(order: Order, ctx: Context) -> Price:
    """Return the price of an order, by asking for the price of each item."""
    cents = 0
    for item in order.items:
        price = await ctx.request("price.quote", item, Price, timeout="10s")
        cents += price.cents
    return Price(cents)
