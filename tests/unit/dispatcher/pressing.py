"""A parent and its child for the tests of sub-workflows, and the agents that execute their nodes."""

from __future__ import annotations

from typing import Any

from coditect.model.result import Outcome
from coditect.workflow.builder import Workflow
from coditect.workflow.definition import Definition
from dispatcher.ledger.effects import Publication
from dispatcher.ledger.keyspace import CHILDREN
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed


def press() -> Workflow:
    """A child of two nodes: what is set is bound."""
    flow = Workflow("press")
    typeset = flow.task("book.set", {"title": flow.input["title"]}, name="typeset", compensate="book.unset")
    flow.task("book.bind", typeset.result, name="bound", compensate="book.unbind")
    return flow


def shop(child: Workflow | None = None, **options: Any) -> Definition:
    """A parent that has a book pressed, and sells it."""
    flow = Workflow("shop")
    order = flow.task("order.take", name="order", compensate="order.refund")
    book = flow.workflow(child or press(), {"title": order.result["title"]}, name="book", **options)
    flow.task("book.sell", book.result, name="sold")
    return flow.definition()


class Player:
    """Plays the agents: notes what ran, with its input, and fails what the test names."""

    def __init__(self, *fails: str) -> None:
        self.fails = set(fails)
        self.ran: list[str] = []
        self.inputs: dict[str, bytes] = {}

    def __call__(self, one: Publication) -> Outcome:
        self.ran.append(one.task.capability)
        self.inputs[one.task.capability] = one.task.body
        if one.task.capability in self.fails:
            return failed()
        return completed({"title": "Alice"} if one.task.capability == "order.take" else f"{one.node_key.node} is done")


async def children(ledger: Ledger, node: str = "book", workflow: str = "w") -> list[str]:
    rows = await ledger.database.read(lambda tr: tr.get_range(*CHILDREN.range((workflow, node))))
    return [child.decode() for _, child in rows]
