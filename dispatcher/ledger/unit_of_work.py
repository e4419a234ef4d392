"""One transaction's view of one shard: each row is read once, changed in memory, and written once at the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

from coditect.errors import NewerVersion
from coditect.model.result import Failure
from coditect.wire.routing import task_key
from coditect.workflow.definition import Call, Node, SubWorkflow
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.ledger import definitions, outbox, timers
from dispatcher.ledger.definitions import Caches
from dispatcher.ledger.effects import Effects, NodeKey, NodeSnapshot, Transition, WorkflowEnd
from dispatcher.ledger.keyspace import (
    AGAIN,
    CONTINUATIONS,
    EDGES,
    LIVE,
    NODES,
    RUNS,
    STATES,
    STATUSES,
    WORKFLOWS,
)
from dispatcher.ledger.outbox import Numbers
from dispatcher.ledger.ownership.policy import Policy
from dispatcher.ledger.rows import NodeRecord, RunRecord, WorkflowRecord
from dispatcher.ledger.timers import Timer
from dispatcher.store.transaction import KeyValue, Transaction

COMPENSATE = "compensate"  # the kind of unfinished work that begins the next compensation of a workflow
CHILD_END = "child_end"  # the kind that ends a node whose child has ended
FULL_BYTES = 4_000_000
"""The size in bytes from which a transaction is full: less than half of what the store accepts."""
FULL_STEPS = 500_000
"""The evaluation steps from which a transaction is full: half a second, of the five that the store allows."""
BYTES_PER_STEP = 16
"""The bytes of a definition or input that count as one step, since they stay in memory until the end."""
MOST_AHEAD = 16  # the dependents of a node to read ahead; of a node with more none is read ahead
_PUBLISHED = (TaskState.PUBLISHED, TaskState.WORKING)


class UnitOfWork:
    """The rows of one shard that one try of a transaction works on; `close` writes the changed rows."""

    def __init__(
        self, tr: Transaction, policy: Policy, caches: Caches, *, now_ms: int, chance: float, room: Mapping[str, int]
    ) -> None:
        self.tr = tr
        self.policy = policy
        self.caches = caches
        self.shard = policy.shard
        self.now_ms = now_ms
        self.chance = chance
        """A random number in [0, 1) from which the transaction computes its random delays."""
        self.doubt = ""  # what is to be said beside an instant of `now_ms`: see `ReferenceClock.doubt`
        self.effects = Effects()
        self.room = dict(room)
        """The number of further publications allowed by capability; `room[""]` is for any other capability."""
        self.ended: deque[NodeKey] = deque()
        """The nodes that ended in the transaction and whose dependents have not been looked at."""
        self.unfit: deque[tuple[NodeKey, Failure]] = deque()
        """The nodes with a damaged input or a refused approval, and the failure by which they are about to end."""
        self.steps = 0
        """The computing steps spent so far on expressions, definitions and inputs."""
        self.follows_on = False
        """Whether a node that becomes ready now may go straight to the agent that ended its predecessor."""
        self.defer_dependents = False  # what follows from a command is left to later transactions
        self._free: tuple[str, str] | None = None
        self.announced: NodeKey | None = None  # whose release was announced to the store before its turn
        self.granted: set[NodeKey] = set()
        """The nodes that this transaction let an agent run; the agents have not got the answers yet."""
        self._workflows: dict[str, WorkflowRecord] = {}
        self._runs: dict[str, tuple[bytes | None, RunRecord | None]] = {}
        self._states: dict[str, WorkflowState] = {}
        """The states of workflows as they were when the transaction read them."""
        self._nodes: dict[NodeKey, tuple[bytes, NodeRecord]] = {}
        self._dependents: dict[NodeKey, list[KeyValue]] = {}
        self._definitions: dict[NodeKey, Node] = {}
        self._rows: dict[NodeKey, bytes] = {}
        """The stored bytes of the definitions that the transaction read or wrote."""
        self._to_show: list[NodeKey] = []
        self.backlog = set(caches.backlog)
        """The capabilities that have ready nodes waiting for room, so that later ready nodes wait behind them."""
        self.confirmed = 0  # the publication number up to which the broker has confirmed all, if that is to be recorded
        self._last_number = 0
        self._stored_numbers: Numbers | None = None

    @property
    def is_full(self) -> bool:
        """Tell whether the transaction is so large, long or old that later transactions must do the remaining work."""
        return self.tr.size_bytes > FULL_BYTES or self.steps > FULL_STEPS or self.tr.is_aging

    # -- rows -------------------------------------------------------------------------------------------

    def workflow(self, workflow: str) -> WorkflowRecord | None:
        """Return a workflow's fixed record, read once per transaction; None when the workflow is unknown."""
        known = self._workflows.get(workflow)
        if known is None:  # what is not there may be made by a later command of the batch: only what is there is kept
            row = self.tr.get(WORKFLOWS.pack((workflow,)))
            if row is None:
                return None
            known = self._workflows[workflow] = WorkflowRecord.unpack(row)
        return known

    def run(self, workflow: str) -> RunRecord | None:
        """Return the row of a workflow's progress; None when the workflow is not accepted yet, or was removed."""
        if workflow not in self._runs:
            row = self.tr.get(RUNS.pack((workflow,)))
            run = None if row is None else RunRecord.unpack(row)
            self._runs[workflow] = (row, run)
            if run is not None:
                self._states[workflow] = run.state
        return self._runs[workflow][1]

    def begin_run(self, workflow: str) -> RunRecord:
        """Create the progress row of a newly accepted workflow."""
        run = RunRecord()
        self._runs[workflow] = (None, run)
        return run

    def node(self, node_key: NodeKey) -> NodeRecord | None:
        """Return the record of a node's progress, read once per transaction; None when there is no such node."""
        known = self._nodes.get(node_key)
        if known is None:
            row = self.tr.get(STATUSES.pack((node_key.workflow, node_key.node)))
            if row is None:
                return None
            known = self._nodes[node_key] = (row, NodeRecord.unpack(row))
        return known[1]

    def has_read(self, node_key: NodeKey) -> bool:
        """Tell whether the transaction has read or created the row of the node's progress."""
        return node_key in self._nodes

    def met(self, node_key: NodeKey, stored: bytes) -> NodeRecord:
        """Return a node's progress, decoded from the row `stored` unless the transaction has read the node before."""
        if node_key not in self._nodes:
            self._nodes[node_key] = (stored, NodeRecord.unpack(stored))
        return self._nodes[node_key][1]

    def expect(self, node_keys: Iterable[NodeKey]) -> None:
        """Read the progress rows of several nodes into memory by one read, because commands will soon ask for them."""
        unread = [node_key for node_key in dict.fromkeys(node_keys) if node_key not in self._nodes]
        if len(unread) < 2:  # it is as soon read when it is asked for
            return
        rows = self.tr.get_many([STATUSES.pack((node_key.workflow, node_key.node)) for node_key in unread])
        for node_key, row in zip(unread, rows, strict=True):
            with suppress(NewerVersion):  # whatever asks for it is refused
                if row is not None:
                    self._nodes[node_key] = (row, NodeRecord.unpack(row))

    def expect_all(self, node_keys: Collection[NodeKey]) -> None:
        """Read progress rows and definitions of several nodes at once, for later calls of `node` and `definition`."""
        if len(node_keys) > 1:  # one is as soon read when it is asked for
            self.expect(node_keys)
            self.expect_definitions(node_keys)

    def expect_definitions(self, node_keys: Iterable[NodeKey]) -> None:
        """Read the uncached definitions of several nodes by one read; large ones are read when they are needed."""
        known = self.caches.definitions
        base = dict.fromkeys(node_key.defined for node_key in node_keys)
        unread = [
            node_key
            for node_key in base
            if node_key not in self._definitions and node_key not in self._rows and known.row(node_key) is None
        ]
        if len(unread) < 2:
            return
        rows = self.tr.snapshot.get_many([NODES.pack((node_key.workflow, node_key.node)) for node_key in unread])
        for node_key, row in zip(unread, rows, strict=True):
            if row:
                self._rows[node_key] = row

    def seen(self, node_keys: Sequence[NodeKey]) -> list[NodeRecord | None]:
        """Return nodes' progress records in order, None if missing, by one read; callers must not change them."""
        unread = [node_key for node_key in node_keys if node_key not in self._nodes]
        rows = self.tr.snapshot.get_many([STATUSES.pack((node_key.workflow, node_key.node)) for node_key in unread])
        read = {node_key: NodeRecord.unpack(row) for node_key, row in zip(unread, rows, strict=True) if row is not None}
        return [self._nodes[node_key][1] if node_key in self._nodes else read.get(node_key) for node_key in node_keys]

    def expect_ends(self, node_keys: Iterable[NodeKey]) -> None:
        """Read the edges and dependents of ended nodes into memory ahead of use, for nodes with up to 16 dependents."""
        ending = [node_key for node_key in node_keys if not node_key.is_derived and node_key not in self._dependents]
        if not ending:
            return
        ranges = [EDGES.range((node_key.workflow, node_key.node)) for node_key in ending]
        found = self.tr.get_ranges(ranges, limit=MOST_AHEAD + 1)
        few = {node_key: edges for node_key, edges in zip(ending, found, strict=True) if len(edges) <= MOST_AHEAD}
        self._dependents.update(few)
        self.expect(
            NodeKey(node_key.workflow, EDGES.unpack(key)[2]) for node_key, edges in few.items() for key, _ in edges
        )

    def dependents(self, node_key: NodeKey, after: str, limit: int) -> Sequence[KeyValue]:
        """Return at most `limit` edges from a node to its dependents whose names follow `after`."""
        if not after and node_key in self._dependents:
            return self._dependents[node_key][:limit]
        return self.tr.get_range(*EDGES.behind(node_key, (after,)), limit=limit)

    def add_node(self, node_key: NodeKey, row: NodeRecord) -> None:
        """Write and count the row of a new node of a running workflow."""
        self.write_node(node_key, row)
        self._to_show.append(node_key)
        run = self._of(node_key)
        run.open += 1
        run.counts[row.state.value] = run.counts.get(row.state.value, 0) + 1

    def write_node(self, node_key: NodeKey, row: NodeRecord) -> None:
        """Write a new node's row at once, so that a walk over the workflow finds the node."""
        written = row.pack()
        self.tr.set(STATUSES.pack((node_key.workflow, node_key.node)), written)
        self._nodes[node_key] = (written, row)

    def definition(self, node_key: NodeKey) -> Node:
        """Return a node's parsed definition; for a map's element or a compensation, one derived from another node's."""
        node = self._definitions.get(node_key)
        if node is None:
            node = self._derived(node_key) if node_key.is_derived else self._read(node_key)
            self._definitions[node_key] = node
        return node

    def _read(self, node_key: NodeKey) -> Node:
        row = self._rows.get(node_key)
        if row is None:
            node = self.caches.definitions.node(node_key)
            if node is not None:
                return node
            row = self.caches.definitions.row(node_key)
        if row is None:
            row = definitions.find(self.tr.snapshot, node_key)
        if row is None:
            raise KeyError(node_key)
        self._rows[node_key] = row
        self.steps += len(row) // BYTES_PER_STEP
        return definitions.known(node_key, row)

    def _derived(self, node_key: NodeKey) -> Node:
        defined = self.definition(node_key.defined)
        work = defined.work if isinstance(defined.work, SubWorkflow) else defined.call
        assert work is not None
        return Node(node_key.node, work.undo if node_key.is_compensation else work)

    def call(self, node_key: NodeKey) -> Call | None:
        """Return a node's capability call, or None; with a handoff's other capability if the node's row was read."""
        call, known = self.definition(node_key).call, self._nodes.get(node_key)
        taken = known[1].capability if known is not None else ""
        return replace(call, capability=taken) if taken and call is not None else call

    # -- changes ----------------------------------------------------------------------------------------

    def move(self, node_key: NodeKey, row: NodeRecord, state: TaskState) -> RunRecord:
        """Change a node's state and the workflow's counts, note this in the effects, and return the workflow's row."""
        run = self._of(node_key)
        run.counts[row.state.value] -= 1
        run.counts[state.value] = run.counts.get(state.value, 0) + 1
        run.open += row.state.terminal - state.terminal
        row.state = state
        call = self.call(node_key)
        capability, level = (call.capability, call.priority.value) if call is not None else ("", "")
        row.destination = None if call is None else task_key(capability, call.priority)
        self.effects.transitions.append(Transition(node_key, state, capability, level, row))
        return run

    def show(self, node_key: NodeKey) -> None:
        """Have a node's state sent to RQ after the commit."""
        self.definition(node_key)
        self._to_show.append(node_key)

    def define(self, node_key: NodeKey, definition: bytes) -> None:
        """Write the definition of a new node to the store.

        Raises:
            ValueBeyondBound: when the definition is larger than one value may be.
        """
        definitions.write(self.tr, node_key, definition)
        self._rows[node_key] = definition

    def show_new(self, node_key: NodeKey, node: Node) -> None:
        """Note a new node and its given definition, so that the node's state is sent to RQ after the commit."""
        self._definitions[node_key] = node
        self._to_show.append(node_key)

    def last_number(self) -> int:
        """Return the shard's last publication number, at least the one just below all numbers of this incarnation."""
        if not self._last_number:
            self._last_number = max(self._numbers().last, self.policy.floor)
        return self._last_number

    def _numbers(self) -> Numbers:
        if self._stored_numbers is None:
            self._stored_numbers = outbox.numbers(self.tr, self.shard)
        return self._stored_numbers

    def next_number(self, capability: str) -> int:
        """Return a publication number that is never given again, and permit one publication less of the capability."""
        self.add_room(capability, -1)
        self.last_number()
        self._last_number += 1
        return self._last_number

    def advance_fence(self, row: NodeRecord) -> None:
        """Set the node's fence above every fence of its earlier attempts, in any incarnation of the store."""
        row.fence = max(row.fence, self.policy.floor) + 1

    def may_publish(self, capability: str) -> bool:
        """Tell whether a capability's ready node may be published now: there is room, and no other one waits."""
        return self.has_room(capability) and capability not in self.backlog

    def has_room(self, capability: str) -> bool:
        """Tell whether the dispatcher may publish one more task of a capability now."""
        return self.room.get(capability, self.room.get("", 0)) > 0

    def add_room(self, capability: str, number: int) -> None:
        """Permit `number` more publications of a capability, for which the dispatcher has reserved capacity."""
        self.room[capability] = self.room.get(capability, self.room.get("", 0)) + number

    def note_free(self, agent: str, capability: str) -> None:
        """Remember an agent with a free slot for a capability's next node, if nodes may go straight to an agent now."""
        self._free = (agent, capability) if self.follows_on else None

    def take_free(self, capability: str) -> str:
        """Return and forget the agent that `note_free` recorded for a capability; empty when there is none."""
        if self._free is None or self._free[1] != capability:
            return ""
        (agent, _), self._free = self._free, None
        return agent

    def _of(self, node_key: NodeKey) -> RunRecord:
        run = self.run(node_key.workflow)
        if run is None:
            raise KeyError(node_key)
        return run

    def set_timer(self, timer: Timer) -> None:
        """Store a timer of the shard, in place of one of the same name, and note its instant for the timer service."""
        timers.put(self.tr, self.shard, timer)
        self.effects.due_ms = min(self.effects.due_ms, timer.due_ms)

    def leave(self, node_key: NodeKey, kind: str, cursor: str = "") -> None:
        """Store a cursor from which later transactions continue a node's long work, such as releasing dependents."""
        key = CONTINUATIONS.pack((self.shard, node_key.workflow, node_key.node, kind))
        self._of(node_key).todo += self.tr.get(key) is None  # a walk that is left over and begun again is one piece
        self.tr.set(key, cursor.encode())
        self.effects.unfinished = True

    # -- the end ----------------------------------------------------------------------------------------

    def close(self) -> Effects:
        """End workflows without work left, write the changed rows, and return the effects to apply after the commit."""
        self._drop_overtaken()
        for workflow, (_, run) in tuple(self._runs.items()):  # the end of a child brings its parent's run
            if run is not None:
                self._end_of(workflow, run)
        for workflow, (before, run) in self._runs.items():
            if run is not None:
                self._write(RUNS.pack((workflow,)), before, run.pack())
                self._index(workflow, run.state)
                self.effects.runs.append((workflow, run))
        for node_key, (before, row) in self._nodes.items():
            self._write(STATUSES.pack((node_key.workflow, node_key.node)), before, row.pack())
        self._record_numbers()
        self.expect(self._to_show)
        self.effects.snapshots += [self.snapshot(node_key) for node_key in self._to_show]
        changed = self.effects.definitions
        changed.update((node_key, (row, self._definitions.get(node_key))) for node_key, row in self._rows.items())
        changed.update((node_key, None) for node_key, (_, row) in self._nodes.items() if row.state.terminal)
        return self.effects

    def _drop_overtaken(self) -> None:
        """Drop publications whose nodes were canceled or published again later in the same transaction."""
        valid = []
        for publication in self.effects.publications:
            row = self.node(publication.node_key)
            if row is not None and row.state in _PUBLISHED and row.publication == publication.number:
                valid.append(publication)
        self.effects.publications = valid

    def _record_numbers(self) -> None:
        if not self._last_number and not self.confirmed:
            return
        stored = self._numbers()
        numbers = Numbers(max(stored.last, self._last_number), max(stored.confirmed, self.confirmed))
        if numbers != stored:
            outbox.record(self.tr, self.shard, numbers)

    def snapshot(self, node_key: NodeKey) -> NodeSnapshot:
        """Return a node's current snapshot, to update RQ's copy of the workflow."""
        row, node = self.node(node_key), self.definition(node_key)
        assert row is not None
        return NodeSnapshot.of(node_key, row.state, node)

    def _index(self, workflow: str, state: WorkflowState) -> None:
        before = self._states.get(workflow)
        if before is not state:
            if before is not None:
                self.tr.clear(STATES.pack((before.value, workflow)))
            self.tr.set(STATES.pack((state.value, workflow)), b"")

    def _write(self, key: bytes, before: bytes | None, after: bytes) -> None:
        if before != after:
            self.tr.set(key, after)

    def _end_of(self, workflow: str, run: RunRecord) -> None:
        if run.open or run.todo or run.state.terminal:
            return
        if run.redriving:  # nothing is left of it, not even of one that was given up
            self.tr.clear_range(*AGAIN.range((workflow,)))
            run.redriving = False
        if run.to_compensate and run.ended is None and not run.keeps and run.end is not WorkflowState.COMPLETED:
            run.ended, run.state, run.canceling = run.end, WorkflowState.COMPENSATING, False
            self.leave(NodeKey(workflow, ""), COMPENSATE)
            self.effects.say("workflow.compensating", workflow)
            return
        run.state, run.finished_ms = run.end, self.now_ms
        self.tr.clear(LIVE.pack((self.shard, workflow)))
        head = self.workflow(workflow)
        assert head is not None
        head.note_end(self.tr, workflow, self.now_ms)
        self.effects.say(f"workflow.{run.state.value}", workflow, name=head.name)
        took_ms, is_child = self.now_ms - head.accepted_ms, head.parent is not None
        self.effects.ended.append(WorkflowEnd(run.state, took_ms, run.by_hand > 0, is_child, head.name))
        if head.parent is not None and self.run(head.parent.workflow) is not None:
            self.leave(NodeKey(head.parent.workflow, head.parent.node), CHILD_END)
