"""The mutants in threads, votes, patterns, triggers, sub-workflows, rates, streams, and restores of workflows."""

from __future__ import annotations

from dispatcher.chaos.mutants.mutant import Mutant

_RESTORE = "dispatcher.ledger.workflows.checkpoints.restore"
_THREADS = "dispatcher.coordination.threads.threads"

MUTANTS = (
    Mutant(
        "message_said_twice",
        _THREADS,
        "    known = rows.said(unit.tr, thread.id, name)\n",
        "    known = None\n",
        "a message of which the answer was lost is in its thread twice",
        ("threads kept",),
        seed=31,
    ),
    Mutant(
        "receipt_ahead",
        _THREADS,
        '    upto = min(number(body, "number", 1), thread.last) if body.get("number") else 0\n',
        "    upto = thread.last\n",
        "a participant that listens again is not told what was said while it was away",
        ("threads kept",),
        seed=31,
    ),
    Mutant(
        "half_is_enough",
        "coditect.workflow.patterns.merging",
        "        if count > half:\n",
        "        if count >= half:\n",
        "a vote is won by half of the votes",
        ("majority counts",),
        seed=41,
    ),
    Mutant(
        "event_twice",
        "dispatcher.coordination.triggers",
        '        answer = _start(unit, record, {"event": event}, identity)\n',
        '        answer = _start(unit, record, {"event": event}, f"{identity}{unit.now_ms}")\n',
        "an event that is published again starts a second workflow",
        ("one run an event",),
        seed=51,
    ),
    Mutant(
        "waiting_events_dropped",
        "dispatcher.requests.triggers",
        "                    await self._open(record.name, record.event)\n",
        "                    await self._broker.delete_queue(routing.trigger_queue(record.name))\n"
        "                    await self._open(record.name, record.event)\n",
        "who takes a shard over drops the events that wait for its triggers",
        ("one run an event",),
        seed=51,
    ),
    Mutant(
        "child_left_behind",
        "dispatcher.ledger.nodes.children",
        "        unit.leave(node_key, CANCEL, child)\n    return True\n",
        "        unit.leave(node_key, CANCEL, child)\n    return False\n",
        "a workflow that is canceled ends before its children",
        ("child ends first",),
        seed=161,
    ),
    Mutant(
        "begun_without_a_token",
        "coditect.agent.guards.tokens",
        "        if self._held() <= 0:\n            return False\n        self._tokens -= 1\n",
        "        self._tokens -= 1\n",
        "an execution begins although its agent has no token of the rate",
        ("rate kept",),
        seed=71,
    ),
    Mutant(
        "restart_hidden",
        "coditect.messaging.parts",
        "            if self._next and self._lost is None:\n",
        "            if self._next < 0 and self._lost is None:\n",
        "a reader is given parts of another execution, and is not told",
        ("parts in order",),
        seed=81,
    ),
    Mutant(
        "state_not_brought_back",
        _RESTORE,
        "    last = spaces.bring_back(unit, root.workflow, positions.read(run.restoring), after, run.restoring[2])\n",
        "    last = None\n",
        "a restored workflow goes on with the shared state of what was discarded",
        ("restored whole",),
        seed=91,
    ),
    Mutant(
        "discarded_and_not_undone",
        _RESTORE,
        "        if row is None or not position.keeps(node_key.node, row):\n"
        "            return compensations.of(node_key)\n",
        "",
        "a restore discards completed nodes without their compensations",
        ("restored whole",),
        seed=91,
    ),
    Mutant(
        "undone_and_not_discarded",
        _RESTORE,
        "        if row is None or not position.keeps(node_key.node, row):\n",
        "        if row is not None:\n",
        "a restore compensates nodes that it does not discard",
        ("restored whole",),
        seed=91,
    ),
    Mutant(
        "completed_not_discarded",
        _RESTORE,
        "        if node_key.is_compensation or position.keeps(node_key.node, row):\n",
        "        if node_key.is_compensation or row.state is TaskState.COMPLETED:\n",
        "what completed after the checkpoint of a restore counts all the same",
        ("restored whole",),
        seed=91,
    ),
    Mutant(
        "begun_again_unseen",
        "dispatcher.ledger.nodes.claim",
        "    forget_restore(row)\n",
        "",
        "the plan of a restore does not name what runs again since the restore before it",
        (
            "tests/unit/dispatcher/ledger/workflows/test_checkpoints.py::"
            "test_nodes_that_run_again_after_a_restore_or_wait_for_room_after_an_attempt_are_in_the_next_plan",
        ),
    ),
    Mutant(
        "one_less_is_enough",
        "coditect.workflow.join",
        "        if self.met >= self.needed:\n",
        "        if self.met >= max(1, self.needed - 1):\n",
        "a quorum has one member less than it needs",
        ("patterns join",),
        seed=21,
    ),
    Mutant(
        "discarded_attempt_writes",
        "dispatcher.ledger.workflows.control",
        '    if row is None or row.state.terminal or row.fence > number(by, "fence", 1):\n',
        "    if row is None or row.state.terminal:\n",
        "an attempt that a restore has discarded writes to shared state",
        ("restored whole",),
        seed=391,
    ),
)
