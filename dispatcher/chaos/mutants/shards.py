"""The mutants in the code of shards: of their leases, their workers, and the consumers of results."""

from __future__ import annotations

from dispatcher.chaos.mutants.mutant import Mutant

MUTANTS = (
    Mutant(
        "lease_unchecked",
        "dispatcher.shards.batch",
        "    leases.check(tr, batch.lease)\n",
        "    leases.read(tr, batch.lease.name)\n",
        "who has lost a shard goes on committing",
        ("tests/unit/dispatcher/shards/test_ownership.py::test_late_commit_is_refused_counted_and_said",),
    ),
    Mutant(
        "epoch_unchecked",
        "dispatcher.ledger.ownership.leases",
        "    return (found.owner, found.epoch) == (lease.owner, lease.epoch)\n",
        "    return found.owner == lease.owner\n",
        "a lease of an earlier epoch is good again when its owner has a newer one",
        ("tests/unit/layers/test_leases.py::test_the_same_owner_with_an_older_epoch_is_refused",),
    ),
    Mutant(
        "epoch_reused",
        "dispatcher.ledger.ownership.leases",
        "    lease = Lease(name, owner, found.epoch + 1,",
        "    lease = Lease(name, owner, max(1, found.epoch),",
        "a lease changes hands under the same epoch",
        ("fences grow",),
    ),
    Mutant(
        "living_expired",
        "dispatcher.ledger.ownership.shards",
        "        if pulse.owner != me and pulse.has_lapsed():\n",
        "        if pulse.owner != me and pulse.still_ms:\n",
        "a dispatcher is taken for dead after one missed beat",
        ("tests/unit/layers/test_shards.py::test_a_dispatcher_that_misses_five_beats_keeps_its_shards",),
    ),
    Mutant(
        "unconfirmed_forgotten",
        "dispatcher.shards.worker",
        "            asyncio.get_running_loop().call_later(RETRY_SECONDS, self.put, lost)\n",
        '            log.debug("It may be there", extra={"publication": lost.publication})\n',
        "a publish whose confirm is unknown is forgotten",
        (
            "tests/unit/dispatcher/shards/test_unknown_publishes.py::test_publish_whose_confirm_is_unknown_is_repeated_under_another_number",
        ),
    ),
    Mutant(
        "unconfirmed_cleared",
        "dispatcher.shards.worker",
        "        if error is None:\n            self._note_confirmed([publication.number])\n",
        "        self._note_confirmed([publication.number])\n        if error is None:\n",
        "the outbox forgets what the broker did not confirm",
        (
            "tests/unit/dispatcher/shards/test_closing_worker.py::test_what_no_queue_took_keeps_its_row_until_the_ledger_knows",
        ),
    ),
    Mutant(
        "unheard_commit_forgotten",
        "dispatcher.shards.worker",
        "            self._doubt()\n            raise\n",
        "            raise\n",
        "what a transaction did that was committed unheard is not looked up",
        (
            "tests/unit/dispatcher/shards/test_unknown_commits.py::test_what_an_unknown_commit_claimed_is_published_and_leaves_no_row",
        ),
    ),
    Mutant(
        "outbox_unread",
        "dispatcher.shards.worker",
        "            if unsent.publication in waiting:\n                self.put",
        "            if not unsent.publication:\n                self.put",
        "who takes a shard over does not publish what its predecessor left in the outbox",
        (
            "tests/unit/dispatcher/shards/test_unknown_publishes.py::test_who_takes_a_shard_over_publishes_anew_what_may_not_have_been_sent",
        ),
    ),
    Mutant(
        "sent_before_the_rebuild",
        "dispatcher.shards.publishing.publisher",
        "        elif number > self._last:\n",
        "        else:\n",
        "what is to be published again is sent as well",
        (
            "tests/unit/dispatcher/shards/test_publisher_of_a_shard.py::test_what_was_published_before_is_dropped_and_what_comes_after_is_sent",
        ),
    ),
    Mutant(
        "alone_with_the_gone",
        "dispatcher.recovery.failover",
        "filter(monitor.is_gone, sorted(missing & begun - self._losing))",
        "filter(monitor.is_gone, ())",
        "what is granted to an agent after its death stays with it",
        ("tests/unit/dispatcher/test_died_unseen.py::test_task_that_is_granted_to_a_dead_agent_is_published_again",),
    ),
    Mutant(
        "doubt_at_once",
        "dispatcher.shards.in_flight",
        "doubted and not flight.agent and silent >= UNTOLD_SECONDS:",
        "doubted and not flight.agent:",
        "what may have been begun is published again by a rebuild",
        ("tests/unit/dispatcher/shards/test_in_flight.py::test_silence_is_judged_by_what_it_is_a_silence_of",),
    ),
    Mutant(
        "ack_before_commit",
        "dispatcher.shards.results",
        "        settle = AckedTogether(delivery, len(results))\n",
        "        delivery.ack()\n        settle = AckedTogether(delivery, len(results))\n",
        "results are acknowledged before they are recorded",
        ("recorded, then acked",),
    ),
    Mutant(
        "undone_acked",
        "dispatcher.shards.results",
        "        if self._undone:\n            self._delivery.requeue()\n        elif",
        "        if",
        "a result that could not be recorded is acknowledged with its shard's end",
        ("tests/unit/dispatcher/shards/test_results_together.py::test_what_is_not_recorded_goes_back",),
    ),
    Mutant(
        "first_of_many_acks",
        "dispatcher.shards.results",
        "        self._left -= 1\n        if self._left:\n            return\n",
        "        self._left -= 1\n",
        "a message of several results is acknowledged with the first of them",
        (
            "tests/unit/dispatcher/shards/test_results_together.py::test_one_that_cannot_be_recorded_takes_no_other_with_it_and_is_a_dead_letter",
        ),
    ),
    Mutant(
        "marker_unchecked",
        "dispatcher.shards.ownership",
        "        if marker == worker.marker:\n            return\n",
        "        if worker.marker:\n            return\n",
        "no dispatcher notices that the broker has lost its data",
        ("tests/unit/dispatcher/test_wiped_broker.py::test_workflow_ends_and_no_node_has_two_outcomes",),
    ),
)
