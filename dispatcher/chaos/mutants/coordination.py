"""The mutants in what agents coordinate with: locks and breakers."""

from __future__ import annotations

from dispatcher.chaos.mutants.mutant import Mutant

_LOCKS = "dispatcher.coordination.locks"
_TESTS = "tests/unit/dispatcher/test_locks.py::"
_BREAKERS = "tests/unit/dispatcher/test_breakers.py::"
_APPROVALS = "tests/unit/dispatcher/test_approval_policy.py::"
_LEARNED = "tests/unit/dispatcher/test_learned_approval.py::"
_UNSEEN = "tests/unit/dispatcher/test_died_unseen.py::"
_HANDOFFS = "dispatcher.coordination.handoffs."
_HANDED = "tests/unit/dispatcher/test_handoffs.py::"
_AT_RANDOM = "tests/unit/dispatcher/test_handoffs_at_random.py::test_a_fence_has_one_owner_and_the_task_one_result"
_UNCOUNTED = "test_no_attempt_of_a_direct_task_counts_when_the_breaker_opens_under_its_handler"

MUTANTS = (
    Mutant(
        "approval_not_awaited",
        "dispatcher.ledger.nodes.approvals.judging",
        "        return _is_learned(unit, node_key, row, record, judgement)\n",
        "        return True\n",
        "a task that the policy asks about runs without an answer",
        ("approved first",),
        seed=8,
    ),
    Mutant(
        "decision_not_in_the_trail",
        "dispatcher.ledger.nodes.approvals.decisions",
        "    trail.append(unit, node_key, entry)\n",
        "",
        "a decision is carried out without an entry in the audit trail",
        ("approved first",),
        seed=8,
    ),
    Mutant(
        "grant_of_another_input",
        "dispatcher.ledger.nodes.approvals.judging",
        "known.decision == GRANTED and known.digest == digest:",
        "known.decision == GRANTED:",
        "a grant counts for an input that nobody was asked about",
        (_APPROVALS + "test_a_redrive_with_another_input_is_asked_about_anew",),
    ),
    Mutant(
        "one_bad_outcome_forgiven",
        "coditect.workflow.approvals.evidence",
        "        if self.streak < self.outcomes and self.streak < learning.recovery:\n",
        "        if self.streak > self.outcomes:\n",
        "an action goes on being approved after a bad outcome",
        (_LEARNED + "test_one_bad_outcome_asks_again_at_once",),
    ),
    Mutant(
        "handoff_of_a_lost_task",
        _HANDOFFS + "handoffs",
        "moved = row.state not in UNDER_WAY or row.fence != handoff.fence\n",
        "moved = row.state not in UNDER_WAY\n",
        "an agent accepts a task from an owner that has lost it, so that the new owner loses it",
        (_AT_RANDOM, _HANDED + "test_an_owner_that_lost_the_task_hands_nothing_off"),
    ),
    Mutant(
        "handoff_accepted_twice",
        _HANDOFFS + "handoffs",
        "    elif handoff.is_open and row is not None:\n",
        "    elif row is not None:\n",
        "a second acceptance takes the task from the agent that accepted it",
        (_AT_RANDOM, _HANDED + "test_an_agent_that_does_not_answer_is_passed_over_and_may_accept_later"),
    ),
    Mutant(
        "handoff_keeps_the_fence",
        _HANDOFFS + "moving",
        "        claim.publish(unit, node_key, row, agent=agent)\n",
        "        claim.publish(unit, node_key, row, agent=agent)\n        row.fence -= 1\n",
        "the former owner of a task that was handed off has the fence of the new one",
        (_AT_RANDOM, _HANDED + "test_the_former_owner_is_refused_and_the_new_one_s_result_counts"),
    ),
    Mutant(
        "handoff_leaves_the_locks",
        _HANDOFFS + "moving",
        "    locks.hand_over(unit, node_key.task_id, handoff.owner, agent)\n",
        "",
        "a task's locks stay with the agent that handed it off",
        (_HANDED + "test_locks_go_with_the_task_under_a_new_fence_and_wait_for_its_new_owner",),
    ),
    Mutant(
        "rest_of_a_race_goes_on",
        "dispatcher.ledger.nodes.advance",
        "            _cancel_rest(unit, unit.definition(node_key), node_key.workflow)\n",
        "            pass\n",
        "who has lost a race is not canceled",
        ("tests/unit/dispatcher/test_joins.py::test_enough_of_several_cancel_the_rest",),
    ),
    Mutant(
        "lock_fence_reused",
        _LOCKS,
        "        ticket.fence = ticket.number\n",
        "        ticket.fence = 1\n",
        "each grant of a lock that is free has the same fence",
        ("locks exclude",),
        seed=25,
    ),
    Mutant(
        "lock_not_exclusive",
        _LOCKS,
        "    if not rows.is_barred(unit.tr, ticket):\n",
        "    if ticket.fence == 0:\n",
        "a lock is granted although another agent holds it",
        ("locks exclude",),
        seed=25,
    ),
    Mutant(
        "lock_never_expires",
        _LOCKS,
        "    if until_ms > unit.now_ms:\n",
        "    if until_ms > 0:\n",
        "a lock outlives a holder that is silent",
        (_TESTS + "test_a_ticket_lives_as_long_as_it_is_renewed_and_no_longer",),
    ),
    Mutant(
        "lock_expires_at_take_over",
        _LOCKS,
        "max(ticket.expires_ms, unit.terms.since_ms + ticket.ttl_ms)",
        "ticket.expires_ms",
        "a shard's new owner ends locks whose holders could not reach it",
        (_TESTS + "test_a_new_owner_of_the_shard_gives_each_lock_one_full_time",),
    ),
    Mutant(
        "writers_starve",
        "dispatcher.coordination.lock_rows",
        "        return EXCLUSIVE in (self.mode, mode)\n",
        "        return self.mode == EXCLUSIVE and mode == EXCLUSIVE\n",
        "a reader passes a writer that waits",
        (_TESTS + "test_readers_share_and_a_writer_among_them_is_not_starved",),
    ),
    Mutant(
        "deadlock_unseen",
        "dispatcher.coordination.deadlocks",
        "            if place.flow == me:\n",
        "            if place.flow == (me, flow):\n",
        "two agents wait for each other's lock for ever",
        (_TESTS + "test_the_waiter_that_closes_a_cycle_is_refused_with_the_cycle",),
    ),
    Mutant(
        "lock_fence_from_a_backup",
        "dispatcher.coordination.lock_rows",
        "    number = max(last, unit.terms.floor) + 1\n",
        "    number = last + 1\n",
        "a restored store gives fences again that its later life gave",
        (_TESTS + "test_fences_grow_over_a_restore_of_an_older_copy",),
    ),
    Mutant(
        "two_probes_an_interval",
        "dispatcher.coordination.breakers",
        "    row.due_ms = unit.now_ms + row.reset_ms\n    row.permit",
        "    row.permit",
        "several agents probe a dependency in the same interval",
        ("one probe an interval",),
        seed=6,
    ),
    Mutant(
        "trip_not_broadcast",
        "dispatcher.coordination.breakers",
        '    unit.effects.messages.append(OutgoingMessage(message, routing.BROADCAST, ""))\n',
        "    assert message.type\n",
        "a breaker opens in the agent alone that saw the failures",
        (_BREAKERS + "test_a_trip_opens_the_breaker_once_and_is_broadcast",),
    ),
    Mutant(
        "attempt_burnt_by_a_breaker",
        "coditect.agent.guards.breakers",
        "            if not breaker.is_closed and ",
        "            if breaker.is_closed and ",
        "an attempt counts although its breaker is open",
        ("tests/unit/agent/test_breakers.py::" + _UNCOUNTED,),
    ),
    Mutant(
        "tokens_kept",
        "coditect.agent.guards.tokens",
        "        if self._now() >= self._until:\n",
        "        if self._now() < 0:\n",
        "an agent keeps tokens that it has not used, and later exceeds the rate with them",
        ("rate kept",),
        seed=71,
    ),
    Mutant(
        "key_not_awaited",
        "coditect.agent.guards.keys",
        "                return await self._entered(lock, stack, execution) or await run()\n",
        "                return await run()\n",
        "a task runs while another one of its key does",
        ("keys exclude",),
        seed=3,
    ),
    Mutant(
        "died_unseen",
        "dispatcher.recovery.failover",
        "            monitor.suspect(await ports.database.read(lock_rows.holders))\n",
        "            await ports.database.read(lock_rows.holders)\n",
        "nobody misses an agent that died while all dispatchers were away, and its keys stay taken",
        (_UNSEEN + "test_keys_of_an_agent_that_died_while_no_dispatcher_was_there_are_soon_free",),
    ),
    Mutant(
        "client_taken_for_dead",
        "dispatcher.liveness.monitor",
        "        if not entry.listed:\n",
        "        if entry.listed:\n",
        "a client that holds a lock while no dispatcher is there loses it, because it has no mailbox",
        (_UNSEEN + "test_lock_of_a_client_and_key_of_a_living_agent_outlive_the_absence_of_every_dispatcher",),
    ),
    Mutant(
        "key_not_counted",
        "dispatcher.coordination.lock_rows",
        "            if len(first) == most or ",
        "            if len(first) > most or ",
        "more tasks of a key run at once than their capability allows",
        (_TESTS + "test_at_most_so_many_hold_a_counted_lock_and_the_others_follow_in_order_of_arrival",),
    ),
)
