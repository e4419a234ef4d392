"""The restore of a workflow, asked for request by request, and the agents that execute its nodes."""

from __future__ import annotations

from typing import Any

from coditect.model.result import Outcome
from coditect.wire.control import Verb
from coditect.wire.json import loads
from coditect.workflow.builder import Workflow
from dispatcher.ledger.effects import Publication
from dispatcher.ledger.keyspace import AGAIN, CHILDREN, CONTINUATIONS
from dispatcher.ledger.workflows.checkpoints import requests
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed


class Played:
    """Agents that fail the given nodes, the order in which nodes were executed, and what the nodes were given."""

    def __init__(self, *failing: str, tells: str = "") -> None:
        self.failing = failing
        self.tells = tells
        self.order: list[str] = []
        self.inputs: dict[str, object] = {}

    def __call__(self, publication: Publication) -> Outcome:
        name = publication.node_key.node
        self.order.append(name)
        self.inputs[name] = loads(publication.task.body)
        return failed() if name in self.failing else completed(f"{name}{self.tells}")


async def plan(ledger: Ledger, checkpoint: str, workflow: str = "w") -> dict[str, Any]:
    return await ledger.read(requests.plan, workflow=workflow, checkpoint=checkpoint)


async def restore(ledger: Ledger, checkpoint: str, workflow: str = "w") -> dict[str, Any]:
    token = (await plan(ledger, checkpoint, workflow))["token"]
    body = {"workflow": workflow, "checkpoint": checkpoint, "token": token, "by": "ada"}
    return dict(await ledger.ask(Verb.RESTORE, body))


async def is_over(ledger: Ledger) -> None:
    """Nothing of a restore is left behind."""
    run = await ledger.run()
    assert (run.restoring, run.redriving, run.todo, run.open) == (None, False, 0, 0)
    assert await ledger.rows(AGAIN, "w") == await ledger.rows(CONTINUATIONS, 0) == []


def press() -> Workflow:
    """A child of two nodes: what is set is bound."""
    flow = Workflow("press")
    typeset = flow.task("book.set", {"title": flow.input["title"]}, name="typeset", compensate="book.unset")
    flow.task("book.bind", typeset.result, name="bound", compensate="book.unbind")
    return flow


def shop(child: Workflow | None = None, **options: Any) -> Workflow:
    """A parent that has a book pressed, and sells it."""
    flow = Workflow("shop")
    order = flow.task("order.take", name="order", compensate="order.refund")
    book = flow.workflow(child or press(), {"title": order.result["title"]}, name="book", **options)
    flow.task("book.sell", book.result, name="sold")
    return flow


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
    return [child.decode() for _, child in await ledger.rows(CHILDREN, workflow, node)]
