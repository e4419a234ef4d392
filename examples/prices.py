"""An agent that knows what things cost."""

from dataclasses import dataclass

from coditect import Agent
from coditect.errors import InputError

prices = Agent("prices", version="1.0.0", slots=4, tags={"shop"})

CENTS = {"tea": 250, "coffee": 320}


@dataclass
class Item:
    name: str
    count: int = 1


@dataclass
class Price:
    cents: int


@prices.capability("price.quote", timeout="5s")
async def quote(item: Item) -> Price:
    """The price of some pieces of one thing."""
    if item.name not in CENTS:
        raise InputError("Nobody sells this", name=item.name)
    return Price(CENTS[item.name] * item.count)
