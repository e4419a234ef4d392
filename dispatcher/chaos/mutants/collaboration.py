"""The mutants in what agents and people do together, threads and votes, and in what starts workflows for them."""

from __future__ import annotations

from dispatcher.chaos.mutants.mutant import Mutant

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
        "                            await self._open(record.name, record.event)\n",
        "                            await self._broker.delete_queue(routing.trigger_queue(record.name))\n"
        "                            await self._open(record.name, record.event)\n",
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
        seed=61,
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
)
