"""The mutants that undo fixes of failures which were seen in real use."""

from __future__ import annotations

from dispatcher.chaos.mutants.mutant import Mutant

_RELEASED = """\
found.epoch + 1, found.owner)
    _write(tr, lease)
    return lease


def release(tr: Transaction, lease: Lease) -> bool:
    \"\"\"Free a lease so that its next owner gets a higher epoch; return False when it was lost before.

    The next owner finds no `previous`, because the owner has closed its work and need not be evicted.
    \"\"\"
    if not _is_held(tr, lease):
        return False
    _write(tr, Lease(lease.name, "", lease.epoch))
"""

MUTANTS = (
    Mutant(
        "begun_and_marked_no_more",
        "coditect.agent.quarantine",
        " and not (start.deliveries > 1 and began()):",
        ":",
        "a task that ends its agents in an orderly way is never isolated",
        ("poison contained",),
        seed=27,
    ),
    Mutant(
        "long_taken_for_quick",
        "coditect.agent.intake.queue_consumer",
        "        return self._longest_seconds < bound and now - oldest < bound\n",
        "        return self._longest_seconds < bound or now - oldest > bound\n",
        "an agent guesses that what runs for long ends soon, and holds tasks that it cannot start",
        ("tests/unit/agent/intake/test_credit.py::test_two_minute_tasks_on_a_full_fleet_stay_where_they_are",),
    ),
    Mutant(
        "resumes_first",
        "coditect.agent.intake.intake",
        "        self._resuming[level].append(turn := self._loop.create_future())\n",
        "        self._resuming[Priority.P0].append(turn := self._loop.create_future())\n",
        "a task that goes on takes the place of a P0",
        ("P0 soon",),
        seed=4,
    ),
    Mutant(
        "free_slot_unasked",
        "coditect.agent.intake.queue_consumer",
        "        return not self.paused and (bool(self.waiting) or (self.hungry and not self.changing))\n",
        "        return not self.paused and bool(self.waiting)\n",
        "a slot that gets free is offered to no queue that may hold more",
        ("no idle slot",),
        seed=4,
    ),
    Mutant(
        "lost_while_opened",
        "dispatcher.shards.ownership",
        "            if worker.closed or self._consumers.get(shard) is not consumers:\n",
        "            if self._consumers.get(shard) is not consumers:\n",
        "a shard that is lost while it is opened leaves a consumer that returns each result for ever",
        (
            "tests/unit/dispatcher/shards/test_ownership.py::test_shard_that_is_lost_while_it_is_opened_leaves_no_consumer",
        ),
    ),
    Mutant(
        "doubted_and_not_shown",
        "dispatcher.ledger.workflows.submit",
        "        unit.effects.unshown.append(workflow)  # RQ was",
        "        pass  # RQ was",
        "RQ is not told of a workflow whose acceptance was in doubt, and proposes none of its nodes",
        ("tests/unit/dispatcher/shards/test_unknown_commits.py::test_workflow_of_an_unknown_commit_is_shown_in_rq",),
    ),
    Mutant(
        "queues_left_for_ever",
        "dispatcher.liveness.monitor",
        "        for owner in sorted(suspects & left.keys()):\n",
        "        for owner in ():\n",
        "the queues of agents that died unseen stay, and each start of the broker takes longer",
        ("tests/unit/dispatcher/liveness/test_left_queues.py::test_queues_of_an_agent_that_died_unseen_are_removed",),
    ),
    Mutant(
        "last_words_unheard",
        "dispatcher.recovery.failover",
        "        return results is not None and not results.messages and results.consumers <= 1\n",
        "        return True\n",
        "a dead agent's task is done again although its result is on the way",
        (
            "tests/unit/dispatcher/recovery/test_last_words.py::test_dead_agent_s_task_is_published_again_when_all_reports_have_been_read",
        ),
    ),
    Mutant(
        "inbox_deleted_unseen",
        "dispatcher.liveness.left_queues",
        "        if self._evict is None or await self._evict.messages(inbox) != 0:\n",
        "        if False:\n",
        "tasks that a full queue refused are lost with a dead agent's inbox",
        (
            "tests/unit/dispatcher/liveness/test_unbound_inboxes.py::"
            "test_tasks_of_a_dead_agent_s_inbox_that_a_full_queue_refuses_wait_there_until_it_has_room",
        ),
    ),
    Mutant(
        "inbox_counted_early",
        "dispatcher.liveness.left_queues",
        "return KNOWN_SECONDS * 1000 <= now_ms - unbound_ms < MAILBOX_EXPIRES_MS",
        "return True",
        "tasks that a full queue refused are lost with a dead agent's inbox: its number of messages was old",
        (
            "tests/unit/dispatcher/liveness/test_unbound_inboxes.py::"
            "test_inbox_is_kept_until_the_number_of_its_messages_is_younger_than_its_last_one",
        ),
    ),
    Mutant(
        "locks_of_the_dead_left",
        "dispatcher.recovery.failover",
        "        if keeper is None:\n            self._unreleased.add(gone)\n",
        "        if keeper is None:\n            pass\n",
        "a dead agent's locks stay when the shard of locks moves at its death",
        (
            "tests/unit/dispatcher/recovery/test_lock_holders.py::"
            "test_new_owner_has_all_examined_once_and_releases_what_a_dead_agent_held_before",
        ),
    ),
    Mutant(
        "locks_lost_before_the_cut",
        "dispatcher.liveness.monitor",
        "        if await self._fleet.has(agent):\n            return  # it registered",
        "        if False:\n            return  # it registered",
        "an agent that registers again amid its eviction loses the locks that it has acquired since",
        (
            "tests/unit/dispatcher/liveness/test_monitor.py::"
            "test_agent_that_registers_again_amid_its_eviction_keeps_what_it_has_acquired_since",
        ),
    ),
    Mutant(
        "unsettled_for_ever",
        "coditect.agent.requeue",
        "    elif returns >= MOST_RETURNS:\n",
        "    elif returns < 0:\n",
        "what can never be settled goes back again and again",
        (
            "tests/unit/agent/settlement/test_unsettled.py::test_trouble_with_our_own_exchanges_is_waited_for_and_ends_as_a_dead_letter",
        ),
    ),
    Mutant(
        "failure_forgotten",
        "coditect.agent.settlement.outcomes",
        "                self._remembered.put(execution.key, outcome)\n        await self._managed",
        "                pass\n        await self._managed",
        "an agent forgets a failure whose report was lost, and runs the attempt again under its fence",
        (
            "tests/unit/agent/workflow_tasks/test_workflow_task_claims.py::test_failure_whose_publish_failed_is_told_again_and_runs_no_second_time",
        ),
    ),
    Mutant(
        "any_owner_waited_for",
        "coditect.agent.workflow_tasks.acquire",
        "        if origin not in self._heard:\n",
        "        if not origin:\n",
        "a task whose owner does not exist waits for it",
        ("nothing left over",),
        seed=1,
    ),
    Mutant(
        "silence_waited_for",
        "coditect.broker.rabbitmq.publishing.channels",
        "if now - windowed.since >= windowed.stuck_seconds else None",
        "if now < windowed.since else None",
        "a queue that is silent stops every publish of its kind",
        ("tests/faults/test_silent_queue.py::test_silent_queue_stops_no_publish_to_another",),
    ),
    Mutant(
        "one_way_back_for_all",
        "coditect.broker.topology",
        "    bindings += [Binding(routing.RETRY_BACK, back.name, key) for key in keys]\n",
        "",
        "a full queue stops the retries of others",
        ("tests/contract/broker/test_retries.py::test_retries_of_a_capability_whose_queue_is_full_hold_up_no_other",),
    ),
    Mutant(
        "lost_ways_unmended",
        "coditect.broker.rabbitmq.entities",
        "        await self._make_possible(connection, Topology(bindings=bindings), channel)\n",
        "        len(bindings)\n",
        "a binding that somebody removed is not made again",
        (
            "tests/faults/test_deleted_entities.py::test_door_of_strangers_is_open_again_without_anybody_of_ours_going_through_it",
        ),
    ),
    Mutant(
        "map_read_one_by_one",
        "dispatcher.ledger.nodes.advance",
        "for body in values.read_all(unit.tr.snapshot, node_keys))\n",
        "for body in (values.get(unit.tr.snapshot, one) for one in node_keys))\n",
        "a large map cannot end on a slow store",
        ("nothing lost",),
        seed=9,
    ),
    Mutant(
        "shards_kept_without_a_broker",
        "dispatcher.shards.ownership",
        "                self.cut_off_from = gone\n                await self._give_up()\n",
        "                self.cut_off_from = gone\n",
        "a dispatcher that has lost its broker keeps its shards",
        (
            "tests/unit/dispatcher/test_cut_off.py::test_shards_of_a_dispatcher_that_is_cut_off_move_and_come_back_when_it_is_healed",
        ),
    ),
    Mutant(
        "released_as_dead",
        "dispatcher.ledger.ownership.leases",
        _RELEASED,
        _RELEASED.replace("found.owner)", "found.owner or found.previous)").replace("epoch))", "epoch, lease.owner))"),
        "who takes a shard that was released evicts the one that released it",
        ("executions bounded",),
    ),
)
