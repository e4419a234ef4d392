"""The evaluation of costly expressions in a thread, between two transactions.

Expressions may take seconds on a slow machine, which no transaction may, and on SQLite every other transaction would
wait. The values that they see do not change meanwhile: the node's predecessors have ended. The evaluation is left over
in the ledger until it is done, so the shard's next owner begins it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from coditect.aio.supervisor import Supervisor
from coditect.errors import InputError, Retryable
from coditect.model.result import Failure
from coditect.workflow.definition import Node
from coditect.workflow.expressions import Account, Scope
from dispatcher.ledger import definitions
from dispatcher.ledger.commands import Evaluated
from dispatcher.ledger.definitions import known
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.errors import DamagedValue
from dispatcher.ledger.keyspace import STATUSES
from dispatcher.ledger.nodes.advance import element_of, evaluation_key
from dispatcher.ledger.nodes.inputs import Inputs, before, failure_of, inputs_of, scope_of
from dispatcher.ledger.rows import NodeRecord
from dispatcher.shards.completions import Settle
from dispatcher.store.port import Database
from dispatcher.store.transaction import Reads

log = logging.getLogger(__name__)

AGAIN_SECONDS = 0.2
"""The pause before another try to read the values."""


class Evaluations:
    """The evaluations of one shard, one after the other."""

    def __init__(
        self,
        shard: int,
        database: Database,
        background: Supervisor,
        aside: set[bytes],
        put: Callable[[Evaluated, Settle], None],
    ) -> None:
        """Keep the keys of left-over work that is not to be continued in `aside`; give each result to `put`."""
        self._shard = shard
        self._database = database
        self._background = background
        self._aside = aside
        self._put = put
        self._tokens: dict[bytes, str] = {}
        self._turn = asyncio.Lock()

    def begin(self, node_key: NodeKey, token: str) -> None:
        """Begin to evaluate a node's expressions in the background, unless that is under way for the same `token`.

        The token stands for the state of the node in which its expressions are evaluated.
        """
        key = evaluation_key(self._shard, node_key)
        if self._tokens.get(key) == token:
            return
        self._tokens[key] = token
        self._aside.add(key)
        self._background.start(self._evaluate(key, node_key, token), name=f"expressions of {node_key.task_id}")

    async def _evaluate(self, key: bytes, node_key: NodeKey, token: str) -> None:
        async with self._turn:
            while self._tokens.get(key) == token:
                try:
                    told = await evaluate(self._database, node_key)
                except Retryable as error:
                    log.info("What expressions see could not be read", extra={"reason": str(error)})
                    await asyncio.sleep(AGAIN_SECONDS)
                else:
                    self._put(Evaluated(node_key, token, told), _Taken(self, key, token))
                    return

    def taken(self, key: bytes, token: str) -> None:
        """End an evaluation whose result is committed or refused."""
        if self._tokens.get(key) == token:
            del self._tokens[key]
            self._aside.discard(key)

    def close(self) -> None:
        """Begin no more evaluations, and repeat no reads."""
        self._tokens.clear()


@dataclass(frozen=True, slots=True)
class _Taken:
    """The completion of an evaluation's command, which ends the evaluation."""

    evaluations: Evaluations
    key: bytes
    token: str

    def done(self, answer: Any) -> None:
        """End the evaluation, because the ledger has its result."""
        self.evaluations.taken(self.key, self.token)

    def undone(self) -> None:
        """End the evaluation here; the shard's next owner begins it again."""
        self.evaluations.taken(self.key, self.token)


async def evaluate(database: Database, node_key: NodeKey) -> Inputs | Failure:
    """Return the values of the node's expressions, or the failure why there are none.

    Raises:
        Retryable: when the store does not answer.
    """
    try:
        node, scope, has_elements, account = await database.read(lambda tr: _seen(tr, node_key))
        return await asyncio.to_thread(inputs_of, node, scope, account, has_elements=has_elements)
    except (InputError, DamagedValue) as error:
        return failure_of(error)


def _seen(tr: Reads, node_key: NodeKey) -> tuple[Node, Scope, bool, Account]:
    definition = definitions.find(tr, node_key)
    if definition is None:
        raise InputError("There is no such node any more", node=node_key.node)
    node, account = known(node_key, definition), Account()
    rows = tr.get_many([STATUSES.pack(one) for one in before(node, node_key.workflow)])
    told = [None if row is None else NodeRecord.unpack(row) for row in rows]
    has_elements = tr.get(STATUSES.pack(element_of(node_key, 0))) is not None
    return node, scope_of(tr, node_key, node, told, account), has_elements, account
