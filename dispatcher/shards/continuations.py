"""A shard's unfinished work: slow expressions, evaluated outside transactions, and retries of work that took too long.

Expressions may take seconds on a slow machine, which no transaction may, and on SQLite every other transaction would
wait. They are evaluated in a thread, between two transactions. The values that they see do not change meanwhile: the
node's predecessors have ended. The ledger lists the evaluation as unfinished until it is done, so the shard's next
owner begins it again.

Work that took too long, perhaps only because the machine was slow, is retried after a fixed pause.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from coditect.aio.supervisor import Supervisor
from coditect.errors import CoditectError, InputError, Retryable
from coditect.model.result import Failure
from coditect.workflow.definition import Node
from coditect.workflow.expressions import Account, Scope
from dispatcher.ledger import definitions
from dispatcher.ledger.commands import Command, Continue, Evaluated
from dispatcher.ledger.definitions import known
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.errors import DamagedValue
from dispatcher.ledger.keyspace import STATUSES
from dispatcher.ledger.nodes.advance import evaluation_key
from dispatcher.ledger.nodes.inputs import Inputs, before, failure_of, inputs_of, scope_of
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.workflows.continuations import SetAside
from dispatcher.shards.completions import Settle, Undone, ignore
from dispatcher.store.port import Database
from dispatcher.store.transaction import Reads

log = logging.getLogger(__name__)

READ_RETRY_SECONDS = 0.2
"""The pause before another try to read the values that a node's expressions use."""
OVERDUE_RETRY_SECONDS = 300.0
"""The pause before a retry of work that took too long: long, so that work that always does costs the shard little."""


class UnfinishedWork:
    """A shard's work that exceeded its transaction: slow expressions, evaluated one at a time, and overdue retries."""

    def __init__(
        self, shard: int, database: Database, background: Supervisor, put: Callable[[Command, Settle], None]
    ) -> None:
        self._shard = shard
        self._database = database
        self._background = background
        self._put = put
        self._turn = asyncio.Lock()
        self.skipped: set[bytes] = set()
        """The keys of the work that batches skip: expressions under evaluation, and work that failed."""

    def evaluate(self, node_key: NodeKey, token: str) -> None:
        """Evaluate a node's expressions in the background, unless an evaluation of the node is under way.

        The token stands for the node's current state. The ledger ignores values of an older state, and the node's
        expressions are then evaluated again.
        """
        key = evaluation_key(self._shard, node_key)
        if key not in self.skipped:
            self.skipped.add(key)
            self._background.start(self._evaluate(key, node_key, token), name=f"expressions of {node_key.task_id}")

    async def _evaluate(self, key: bytes, node_key: NodeKey, token: str) -> None:
        async with self._turn:
            while key in self.skipped:
                try:
                    inputs = await evaluate(self._database, node_key)
                except Retryable as error:
                    log.info("What expressions see could not be read", extra={"reason": str(error)})
                    await asyncio.sleep(READ_RETRY_SECONDS)
                else:
                    self._put(Evaluated(node_key, token, inputs), partial(self._recorded, key))
                    return

    def _recorded(self, key: bytes, answer: Any) -> None:
        if isinstance(answer, Undone):
            return  # the shard's next owner evaluates the expressions
        if isinstance(answer, CoditectError):
            asyncio.get_running_loop().call_later(OVERDUE_RETRY_SECONDS, self._retry, key)
        else:
            self._retry(key)  # which finds work only if the values were of an older state

    def set_aside(self, error: SetAside) -> None:
        """Skip work that failed: for five minutes if it only took too long, else until the shard's next owner."""
        log.error("What was left over cannot be done; it is set aside", exc_info=error.__cause__, extra=error.facts)
        self.skipped.add(error.piece)
        if error.overdue:
            asyncio.get_running_loop().call_later(OVERDUE_RETRY_SECONDS, self._retry, error.piece)

    def _retry(self, key: bytes) -> None:
        self.skipped.discard(key)
        self._put(Continue(), ignore)

    def close(self) -> None:
        """End all evaluations, because this dispatcher leaves the shard."""
        self.skipped.clear()


async def evaluate(database: Database, node_key: NodeKey) -> Inputs | Failure:
    """Return the values of a node's expressions, or the failure that ends the node.

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
    rows = tr.get_many([STATUSES.pack(predecessor) for predecessor in before(node, node_key.workflow)])
    predecessors = [None if row is None else NodeRecord.unpack(row) for row in rows]
    has_elements = tr.get(STATUSES.pack(node_key.element(0))) is not None
    return node, scope_of(tr, node_key, node, predecessors, account), has_elements, account
