"""A shard's unfinished work: slow expressions, evaluated outside transactions, and retries of work that took too long.

Expressions may take seconds on a slow machine, which no transaction may, and on SQLite every other transaction would
wait. They are evaluated in a thread, between two transactions. The values that they see do not change meanwhile: the
node's predecessors have ended. The evaluation is left over in the ledger until it is done, so the shard's next owner
begins it again.

A piece that took too long, perhaps only because the machine was slow, is tried again. Each retry waits twice as long as
the one before, so that a piece of work that always takes too long costs the shard little. A piece that succeeds and is
not set aside again within an hour begins with the first wait: that is another slow spell.
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
from dispatcher.ledger.nodes.advance import evaluation_key
from dispatcher.ledger.nodes.inputs import Inputs, before, failure_of, inputs_of, scope_of
from dispatcher.ledger.rows import NodeRecord
from dispatcher.ledger.workflows.continuations import SetAside
from dispatcher.shards.completions import Settle
from dispatcher.store.port import Database
from dispatcher.store.transaction import Reads

log = logging.getLogger(__name__)

AGAIN_SECONDS = 0.2
"""The pause in seconds before another try to read the values that a node's expressions need."""
FIRST_SECONDS = 60.0
MOST_SECONDS = 3_600.0


class Evaluations:
    """The evaluations of one shard's costly expressions, one after the other, outside of transactions."""

    def __init__(
        self,
        shard: int,
        database: Database,
        background: Supervisor,
        aside: set[bytes],
        put: Callable[[Evaluated, Settle], None],
    ) -> None:
        """Create the evaluator: `put` gets a command with the values, `aside` the keys of evaluations under way.

        Batches skip the work whose keys are in `aside`.
        """
        self._shard = shard
        self._database = database
        self._background = background
        self._aside = aside
        self._put = put
        self._tokens: dict[bytes, str] = {}
        self._turn = asyncio.Lock()

    def begin(self, node_key: NodeKey, token: str) -> None:
        """Begin to evaluate a node's expressions in the background, unless that is under way for the node's same state.
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
        """Forget a node's evaluation after the ledger has recorded or refused the values, or the shard was lost."""
        if self._tokens.get(key) == token:
            del self._tokens[key]
            self._aside.discard(key)

    def close(self) -> None:
        """Drop all evaluations of expressions that are under way, because this dispatcher leaves the shard."""
        self._tokens.clear()


@dataclass(frozen=True, slots=True)
class _Taken:
    """The callbacks of the command that records the values of evaluated expressions in the ledger."""

    evaluations: Evaluations
    key: bytes
    token: str

    def done(self, answer: Any) -> None:
        """Forget the evaluation, because the ledger has recorded or refused its values."""
        self.evaluations.taken(self.key, self.token)

    def undone(self) -> None:
        """Forget the evaluation; the shard's next owner evaluates the expressions again."""
        self.evaluations.taken(self.key, self.token)


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
    rows = tr.get_many([STATUSES.pack(one) for one in before(node, node_key.workflow)])
    told = [None if row is None else NodeRecord.unpack(row) for row in rows]
    has_elements = tr.get(STATUSES.pack(node_key.element(0))) is not None
    return node, scope_of(tr, node_key, node, told, account), has_elements, account


@dataclass(frozen=True, slots=True)
class Waited:
    """The last pause before a retry of a piece of work: its length in seconds, and its end on the loop's clock."""

    seconds: float
    until: float

    def counts(self, now: float) -> bool:
        """Tell whether this pause lengthens the next one, because it ended at most an hour before `now`."""
        return now <= self.until + MOST_SECONDS


class ContinuationBackoff:
    """The backoff for one shard's unfinished work: work that failed is skipped until its retry, or the worker's end."""

    def __init__(self, go_on: Callable[[], None]) -> None:
        self.aside: set[bytes] = set()
        """The keys of the pieces of work that are set aside; the shard's next owner tries them again."""
        self._go_on = go_on
        self._last: dict[bytes, Waited] = {}
        self._waiting: dict[bytes, asyncio.TimerHandle] = {}

    def set_aside(self, error: SetAside) -> None:
        """Skip a piece of work that failed: until a retry if it only took too long, else until the worker ends."""
        log.error("What was left over cannot be done; it is set aside", exc_info=error.__cause__, extra=error.facts)
        self.aside.add(error.piece)
        if error.overdue:
            self._wait(error.piece)

    def _wait(self, piece: bytes) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._last = {one: waited for one, waited in self._last.items() if waited.counts(now)}
        last = self._last.get(piece)
        seconds = FIRST_SECONDS if last is None else min(2 * last.seconds, MOST_SECONDS)
        self._last[piece] = Waited(seconds, now + seconds)
        self._waiting[piece] = loop.call_later(seconds, self._try_again, piece)

    def _try_again(self, piece: bytes) -> None:
        del self._waiting[piece]
        self.aside.discard(piece)
        self._go_on()

    def close(self) -> None:
        """Cancel the planned retries of all work that is skipped."""
        for handle in self._waiting.values():
            handle.cancel()
        self._waiting.clear()
