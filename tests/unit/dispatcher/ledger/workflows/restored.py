"""The restore of a workflow, asked for request by request, and the agents that execute its nodes."""

from __future__ import annotations

from functools import partial
from typing import Any

from coditect.model.result import Outcome
from coditect.wire.control import Verb
from coditect.wire.json import loads
from dispatcher.ledger.effects import Publication
from dispatcher.ledger.keyspace import AGAIN, TODO
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
    return await ledger.database.read(partial(requests.plan, body={"workflow": workflow, "checkpoint": checkpoint}))


async def restore(ledger: Ledger, checkpoint: str, workflow: str = "w") -> dict[str, Any]:
    token = (await plan(ledger, checkpoint, workflow))["token"]
    return dict(
        await ledger.ask(Verb.RESTORE, {"workflow": workflow, "checkpoint": checkpoint, "token": token, "by": "ada"})
    )


async def listed(ledger: Ledger) -> dict[str, Any]:
    return await ledger.database.read(partial(requests.listing, body={"workflow": "w"}))


async def is_over(ledger: Ledger) -> None:
    """Nothing of a restore is left behind."""
    run = await ledger.run()
    assert (run.restoring, run.again, run.todo, run.open) == (None, False, 0, 0)
    assert await ledger.database.read(lambda tr: tr.get_range(*AGAIN.range(("w",)))) == []
    assert await ledger.database.read(lambda tr: tr.get_range(*TODO.range((0,)))) == []
