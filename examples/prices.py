"""An agent that quotes prices."""

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
    """Return the price of an item, for as many pieces as are wanted."""
    if item.name not in CENTS:
        raise InputError("This shop does not sell it", name=item.name)
    return Price(CENTS[item.name] * item.count)
