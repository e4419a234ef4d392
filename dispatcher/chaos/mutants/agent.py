"""The mutants in the agents' code: in acquiring tasks, publishing results and settling deliveries."""

from __future__ import annotations

from dispatcher.chaos.mutants.mutant import Mutant

MUTANTS = (
    Mutant(
        "unasked",
        "coditect.agent.workflow_tasks.acquire",
        "        if earlier_deliveries(delivery) or published is None or",
        "        if published is None or",
        "a task that came back runs without a claim",
        (
            "tests/unit/agent/workflow_tasks/test_workflow_task_claims.py::test_task_that_came_back_runs_as_it_was_granted",
        ),
    ),
    Mutant(
        "sent_again_unasked",
        "coditect.agent.workflow_tasks.acquire",
        "        if SENT_AGAIN in delivery.message.headers:  # the other copy runs unasked\n            return True\n",
        "",
        "a task that was sent twice for want of a confirm runs twice under one fence",
        (
            "tests/unit/agent/workflow_tasks/test_workflow_task_claims.py::test_task_that_was_sent_again_is_claimed_and_the_copy_before_it_is_not",
        ),
    ),
    Mutant(
        "stale_runs",
        "coditect.agent.workflow_tasks.managed",
        '        elif claim.verdict is Verdict.STALE:\n            log.info("A stale delivery is dropped"',
        '        elif claim.verdict is Verdict.WAIT:\n            log.info("A stale delivery is dropped"',
        "a task runs although its claim was refused",
        ("tests/unit/agent/workflow_tasks/test_workflow_task_claims.py::test_stale_delivery_is_dropped",),
    ),
    Mutant(
        "granted_fence_unused",
        "coditect.agent.workflow_tasks.managed",
        "    task, owner = execution.task, replace(owner_of(execution.task), fence=claim.fence)\n",
        "    task, owner = execution.task, owner_of(execution.task)\n",
        "a result is told under the fence of the publication, not of the grant",
        (
            "tests/unit/agent/workflow_tasks/test_workflow_task_claims.py::test_task_that_came_back_runs_as_it_was_granted",
        ),
    ),
    Mutant(
        "late_grant_runs",
        "coditect.agent.workflow_tasks.managed",
        "            if execution.lost:\n",
        "            if execution.acked_early:\n",
        "a task runs although its delivery has gone to another agent",
        (
            "tests/unit/agent/workflow_tasks/test_workflow_task_claims.py::test_what_is_granted_when_its_delivery_is_with_another_is_given_back",
        ),
    ),
    Mutant(
        "ack_before_reply",
        "coditect.agent.settlement.outcomes",
        "        await self._settler.reply(execution.task, outcome, failed)\n        execution.delivery.ack()\n",
        "        execution.delivery.ack()\n        await self._settler.reply(execution.task, outcome, failed)\n",
        "a direct task is acknowledged before its answer is confirmed",
        ("tests/unit/agent/settlement/test_redelivery.py::test_alarm_that_outlasts_the_patience_drops_no_reply",),
    ),
    Mutant(
        "acked_unconfirmed",
        "coditect.agent.settlement.outcomes",
        "                self._settler.post_reply(execution.task, outcome, answer)\n",
        "                execution.delivery.ack()\n"
        "                self._settler.post_reply(execution.task, outcome, answer)\n",
        "a direct task is acknowledged when its answer was sent, not when it was confirmed",
        ("tests/unit/agent/settlement/test_redelivery.py::test_task_is_acked_only_after_its_reply_is_confirmed",),
    ),
    Mutant(
        "direct_attempt_too_many",
        "coditect.agent.settlement.outcomes",
        "            or task.attempt >= attempts\n",
        "            or task.attempt > attempts\n",
        "a direct task is tried once more than it may be",
        ("tests/unit/agent/settlement/test_attempts.py::test_used_up_attempts_end_in_a_dead_letter_with_the_history",),
    ),
    Mutant(
        "direct_retry_uncounted",
        "coditect.agent.settlement.settle",
        "replace(task, attempt=task.attempt + 1, errors",
        "replace(task, attempt=task.attempt, errors",
        "a retry of a direct task is not counted as an attempt",
        ("tests/unit/agent/settlement/test_attempts.py::test_failed_attempt_is_tried_again",),
    ),
    Mutant(
        "awaiting_uses_up_credit",
        "coditect.agent.intake.queue_consumer",
        "            self.missing = most + self.open - self.slots - credit\n",
        "            self.missing = most - credit\n",
        "tasks that await others use up an agent's credit for good",
        ("tests/unit/agent/intake/test_credit.py::test_tasks_that_await_others_use_up_no_credit",),
    ),
    Mutant(
        "bulk_starves",
        "coditect.agent.intake.slots",
        "        best = max(eligible, key=lambda level: (self._turn[level], WEIGHTS[level]))\n",
        "        best = max(eligible, key=lambda level: WEIGHTS[level])\n",
        "a P2 starts only when nothing else waits",
        ("tests/unit/agent/intake/test_slots.py::test_one_slot_serves_all_levels_by_weight",),
    ),
)
