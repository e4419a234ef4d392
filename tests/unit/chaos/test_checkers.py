"""What each checker of a history excuses, what it judges, and what it leaves alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import pytest

from chaos.checks.check import CheckResult
from chaos.checks.collaboration.decisions import decided_once
from chaos.checks.coordination.keys import keys_exclude
from chaos.checks.coordination.restores import restored_whole
from chaos.checks.executions import as_meant, deaths_proven, executions
from chaos.checks.history_index import HistoryIndex
from chaos.checks.live_set import live_set
from chaos.checks.recovery import recovered
from chaos.checks.slots import no_idle_slot
from chaos.checks.waits import BETWEEN_P2S, CALM_SECONDS, MOST_BEFORE_P0, MOST_BEFORE_P2, p0_soon, p2_progress
from chaos.history import HistoryEntry, Notebook, Type, post_of
from chaos.looking import keep_looking_at_slots, taken
from coditect.model.registration import Load
from tests.unit.broker.virtual_time import in_virtual_time
from tests.unit.chaos.histories import (
    CONTESTED,
    FREE_SLOT,
    GATE,
    RESTORED,
    Story,
    idle,
    indexed,
    look,
    ran_alone,
    restored,
    span,
)

NODE = "workflow:node"
BROKER_STOP = span(12.0, 13.0, "chaos", "stop", "broker")


def ran(agent: str, at: float, fence: int) -> list[HistoryEntry]:
    facts: dict[str, Any] = {"agent": agent, "attempt": 1, "fence": fence}
    granted = {**facts, "state": "working", "version": fence}
    grant = HistoryEntry(at - 5.0, "dispatcher-1", Type.OK, "state", NODE, granted)
    return [grant, *span(at, at + 0.1, agent, "execute", NODE, **facts)]


def judged(check: Callable[[HistoryIndex], CheckResult], *entries: HistoryEntry) -> bool:
    return check(indexed(*entries)).passed


def alone(t: float, life: str) -> HistoryEntry:
    """An agent ends by itself."""
    return HistoryEntry(t, "chaos", Type.INFO, "trouble", post_of(life), {"life": life, "reason": "no broker"})


def died(at: float, agent: str = "agent-2-0a1b") -> HistoryEntry:
    return HistoryEntry(at, "dispatcher-1", Type.OK, "died", NODE, {"agent": agent})


@pytest.mark.parametrize(("broke_at", "passed"), [(6.0, True), (12.0, True), (2.0, False), (21.0, False)])
def test_fault_counts_from_the_grant_of_the_first_execution_to_the_beginning_of_the_last(
    broke_at: float, passed: bool
) -> None:
    fault = span(broke_at, broke_at + 1.0, "chaos", "stop", "broker")

    assert judged(executions, *ran("agent-1", 10.0, 1), *ran("agent-2", 20.0, 2), *fault) is passed


@pytest.mark.parametrize(("broke", "many", "passed"), [(True, 10, True), (True, 11, False), (False, 6, False)])
def test_fault_may_have_doubled_a_foreign_message_all_of_whose_executions_fail(
    broke: bool, many: int, passed: bool
) -> None:
    key, told = "stranger-15-c92c429c", span(11.0, 11.0, "chaos", "stranger", "stranger-15-c92c429c")
    for t in range(14, 14 + many):
        told += span(t, t + 0.1, "agent-1#6", "execute", key, Type.FAIL, attempt=1)

    assert judged(executions, *told, *(BROKER_STOP if broke else ())) is passed


def drained(life: str, asked_at: float, at: float) -> list[HistoryEntry]:
    """An agent that a task asks to end, until it has ended in an orderly way."""
    return [
        HistoryEntry(asked_at, life, Type.OK, "terminate", "suicide"),
        HistoryEntry(at, "chaos", Type.INFO, "restart", post_of(life), {"life": life, "reason": ""}),
    ]


@pytest.mark.parametrize(
    ("life", "passed"), [("agent-2#7", True), ("agent-2#8", False), ("agent-3#9", False), ("", False)]
)
def test_agent_that_ends_by_itself_during_a_fault_of_a_server_counts_beside_the_fault(life: str, passed: bool) -> None:
    runs = [*ran("agent-1#6", 10.0, 1), *ran("agent-2#7", 14.0, 2), *ran("agent-1#6", 20.0, 3)]

    assert judged(executions, *runs, *BROKER_STOP, *([alone(24.0, life)] if life else ())) is passed


@pytest.mark.parametrize(
    ("asked_at", "agent", "passed"),
    [(14.0, "agent-2", True), (50.0, "agent-2", False), (10.05, "agent-3", False), (2.0, "agent-1", False)],
    ids=["amid its execution", "long after it", "an agent that never had it", "before it"],
)
@pytest.mark.parametrize("outcome", [Type.INFO, Type.OK])
def test_agent_that_drains_excuses_only_that_what_it_gave_back_is_executed_again(
    outcome: Type, asked_at: float, agent: str, passed: bool
) -> None:
    facts = {"agent": "agent-2-0a1b", "attempt": 1, "fence": 1}
    first = span(10.0, 13.0 if outcome is Type.OK else 15.0, "agent-2#7", "execute", NODE, outcome, **facts)
    ended = drained(f"{agent}#7", asked_at, asked_at + 8.0)  # a busy machine ends it late

    excused = judged(executions, *first, *ran("agent-1#6", 16.0, 2), *ended)

    assert excused is (passed and outcome is not Type.OK)


@pytest.mark.parametrize(("act", "excused"), [("kill", True), ("drain", False)])
def test_agent_that_drains_uses_up_no_attempt(act: str, excused: bool) -> None:
    facts = {"nodes": {"node": []}, "most": 1, "ends": ["completed"]}
    accepted = HistoryEntry(1.0, "client", Type.OK, "accept", "workflow", facts)
    end = span(10.05, 11.0, "chaos", "kill", "agent-1") if act == "kill" else drained("agent-1#7", 10.05, 11.0)
    given_up = [
        HistoryEntry(12.0, "dispatcher-1", Type.OK, "state", NODE, {"state": "dead", "version": 12}),
        HistoryEntry(13.0, "client", Type.OK, "end", "workflow", {"state": "failed"}),
    ]

    assert judged(as_meant, accepted, *ran("agent-1#7", 10.0, 1), *end, *given_up) is excused


@pytest.mark.parametrize(("life", "passed"), [("agent-2#7", True), ("agent-2#8", False), ("", False)])
@pytest.mark.parametrize("how", ["trouble", "restart"])
def test_attempt_may_have_died_with_an_agent_that_ended_by_itself(life: str, passed: bool, how: str) -> None:
    ended = drained(life, 19.0, 24.0) if how == "restart" else [alone(24.0, life)]
    begun = HistoryEntry(10.0, "agent-2#7", Type.INVOKE, "execute", NODE, {"agent": "agent-2-0a1b", "fence": 1})

    assert judged(deaths_proven, begun, died(20.0), *(ended if life else ())) is passed


@pytest.mark.parametrize(("agent", "passed"), [("agent-1-0a1b", True), ("agent-1-zz", False)])
def test_agent_that_drained_excuses_neither_eviction_nor_death_of_the_next_one_of_its_post(
    agent: str, passed: bool
) -> None:
    lives = [
        HistoryEntry(t, life, Type.INVOKE, "execute", NODE, {"agent": one, "fence": fence})
        for t, life, one, fence in ((15.0, "agent-1#11", "agent-1-0a1b", 1), (30.0, "agent-1#12", "agent-1-zz", 2))
    ]
    ended = drained("agent-1#11", 18.0, 20.0)
    evicted = HistoryEntry(100.0, "dispatcher-1", Type.OK, "evict", agent)

    assert judged(executions, *lives, *ended, evicted) is passed
    assert judged(deaths_proven, *lives, *ended, died(100.0, agent)) is passed


@pytest.mark.parametrize(("at", "passed"), [(4.0, True), (90.0, True), (3.0, False), (200.0, False)])
def test_agent_that_ended_long_before_or_after_a_task_s_executions_excuses_none(at: float, passed: bool) -> None:
    runs = [*ran("agent-1#6", 10.0, 1), *ran("agent-2#7", 14.0, 2)]

    assert judged(executions, *runs, alone(at, "agent-2#7")) is passed


@pytest.mark.parametrize(("at", "passed"), [(10.0, False), (13.0, True), (100.0, True), (200.0, False)])
def test_kill_excuses_the_eviction_and_the_recorded_death_of_its_victim_for_a_while(at: float, passed: bool) -> None:
    kill = span(12.0, 14.0, "chaos", "kill", "agent-1")
    evicted = HistoryEntry(at, "dispatcher-1", Type.OK, "evict", "agent-1-0a1b")

    assert judged(executions, *ran("agent-1", 11.0, 1), *kill, evicted) is passed
    assert judged(deaths_proven, *kill, died(at, "agent-1-0a1b")) is passed


@pytest.mark.parametrize(("at", "passed"), [(20.0, True), (200.0, False)])
def test_agent_that_ends_by_itself_long_after_a_recorded_death_does_not_prove_it(at: float, passed: bool) -> None:
    facts = {"agent": "agent-1-0a1b", "attempt": 1, "fence": 1}
    begun = HistoryEntry(10.0, "agent-1#7", Type.INVOKE, "execute", NODE, facts)

    assert judged(deaths_proven, begun, died(15.0, "agent-1-0a1b"), alone(at, "agent-1#7")) is passed


@pytest.mark.parametrize(("at", "passed"), [(2.0, False), (12.0, True), (30.0, False)])
def test_kill_permits_a_direct_task_more_attempts_only_amid_its_executions(at: float, passed: bool) -> None:
    accepted = HistoryEntry(4.0, "client", Type.OK, "accept", "task", {"most": 1})
    kill = [HistoryEntry(at + late, "chaos", Type.OK, "kill", "agent-1") for late in (0.0, 0.1)]
    first, second = (span(10.0 * n, 10.0 * n, "agent-1", "execute", "task", Type.FAIL, attempt=n) for n in (1, 2))

    assert judged(executions, accepted, *kill, *first, *second) is passed


@pytest.mark.parametrize(("at", "passed"), [(2.0, False), (12.0, True), (30.0, False)])
def test_restore_excuses_another_execution_only_between_the_first_and_the_last(at: float, passed: bool) -> None:
    restore = span(at, at, "client", "restore", "workflow")

    assert judged(executions, *ran("agent-1", 10.0, 1), *restore, *ran("agent-1", 20.0, 2)) is passed


@pytest.mark.parametrize(("accepted_at", "passed"), [(12.5, True), (15.0, False)])
def test_fault_during_the_acceptance_of_a_direct_task_may_have_doubled_it(accepted_at: float, passed: bool) -> None:
    accepted = HistoryEntry(accepted_at, "client", Type.OK, "accept", "task", {"most": 5})
    first, second = (
        span(at, at, agent, "execute", "task", agent=agent, attempt=1, fence=1)
        for agent, at in (("agent-1", 20.0), ("agent-2", 20.5))
    )

    assert judged(executions, *BROKER_STOP, accepted, *first, *second) is passed


@pytest.mark.parametrize(("outcome", "passed"), [(Type.INFO, True), (Type.OK, False), (None, False)])
def test_a_handoff_that_may_have_been_accepted_explains_one_more_execution(outcome: Type | None, passed: bool) -> None:
    offered = [] if outcome is None else span(10.1, 10.3, "agent-1", "hand off", "one", outcome)
    first = span(10.0, 10.4, "agent-1", "execute", "one")
    second = span(10.2, 10.9, "agent-2", "execute", "one")

    assert judged(executions, *first, *offered, *second) is passed


@pytest.mark.parametrize(("begun", "passed"), [(11.1, True), (10.9, False)])
def test_a_task_begins_when_the_one_before_it_of_its_key_has_ended(begun: float, passed: bool) -> None:
    check = keys_exclude(indexed(*ran_alone("one", "agent-1", 10.0, 11.0), *ran_alone("other", "agent-2", begun, 12.0)))

    assert (check.checked, check.passed) == (2, passed)


@pytest.mark.parametrize(("agent", "passed"), [("agent-1", True), ("agent-3", False)])
def test_an_agent_that_stood_still_has_lost_its_key_and_another_one_s_fault_excuses_nothing(
    agent: str, passed: bool
) -> None:
    fault = span(10.2, 10.8, "chaos", "stop", agent)
    both = (*ran_alone("one", "agent-1", 10.0, 11.0), *ran_alone("other", "agent-2", 10.5, 10.9))

    assert keys_exclude(indexed(*both, *fault)).passed is passed


@pytest.mark.parametrize(("accepted_at", "passed"), [(1.0, True), (9.0, False)])
def test_a_fault_may_have_met_a_task_since_its_acceptance_because_it_waits_for_its_key(
    accepted_at: float, passed: bool
) -> None:
    accepted = HistoryEntry(accepted_at, "client", Type.OK, "accept", "one", {"most": 5})
    twice = (*ran_alone("one", "agent-1", 10.0, 11.0), *ran_alone("one", "agent-2", 11.5, 12.0))

    assert executions(indexed(accepted, *twice, *span(2.0, 7.0, "chaos", "stop", "agent-1"))).passed is passed


WELL, AWAY = ("one", "two"), ("two",)


def registry_judged(
    *looks: tuple[float, Collection[str] | None, Collection[str]], faults: Collection[HistoryEntry] = ()
) -> CheckResult:
    """Of looks: when, who was listed, who was at work."""
    entries = [entry for t, listed, living in looks for entry in look(t, listed, running=living, at_work=living)]
    return live_set(indexed(*entries, *faults))


def test_stopped_agent_may_be_listed_until_its_lease_has_lapsed_and_not_longer() -> None:
    stopped = [(float(t), WELL, AWAY) for t in range(1, 4)]
    before, late = (0.0, WELL, WELL), (5.0, WELL, AWAY)

    assert registry_judged(before, *stopped, (4.0, WELL, AWAY)).passed
    assert registry_judged(before, *stopped, (4.0, WELL, AWAY), late).violations == (
        "one is listed and does not live at 5.0",
    )
    assert registry_judged(before, *stopped, (4.0, WELL, AWAY), (5.0, AWAY, AWAY)).passed


def test_agent_that_goes_on_for_a_moment_between_two_looks_is_listed_rightly() -> None:
    stood = [(float(t), AWAY, AWAY) for t in range(5)]
    moments = [
        HistoryEntry(5.2, "chaos", type_, "stop", "one", {"kind": "agent.stop"}) for type_ in (Type.OK, Type.INVOKE)
    ]
    looks = [*stood, (5.0, AWAY, AWAY), *((float(t), WELL, AWAY) for t in range(6, 11))]

    assert registry_judged(*looks, faults=moments).violations == ("one is listed and does not live at 10.0",)
    assert registry_judged(*looks[:-1], faults=moments).passed


def test_agent_that_goes_on_is_to_be_listed_3_s_later() -> None:
    first, back = (0.0, AWAY, AWAY), [(float(t), AWAY, WELL) for t in range(1, 6)]

    assert registry_judged(first, *back[:4]).passed
    assert registry_judged(first, *back).violations == ("one lives and is not listed at 5.0",)


def test_agent_on_its_way_is_neither_missed_nor_taken_for_dead() -> None:
    entries = [entry for t in range(8) for entry in look(float(t), ("new",), running=("new",), at_work=())]

    check = live_set(HistoryIndex(entries))

    assert (check.checked, check.violations) == (4, ())


def test_agent_that_is_parted_from_redis_is_not_missed_until_it_is_back_for_a_while() -> None:
    parted = span(1.0, 5.5, "chaos", "part", "one")
    missed = [(float(t), AWAY, WELL) for t in range(3, 11)]

    assert registry_judged((0.0, WELL, WELL), (1.0, WELL, WELL), (2.0, WELL, WELL), *missed[:7], faults=parted).passed
    assert registry_judged(*missed, faults=parted).violations == ("one lives and is not listed at 10.0",)


def test_nothing_is_judged_soon_after_redis_was_away_or_when_nobody_looked() -> None:
    wrong = [(float(t), (), WELL) for t in range(10)]
    wiped = HistoryEntry(5.5, "chaos", Type.OK, "wipe", "redis", {"kind": "redis.wipe"})
    without_an_answer = [(t, None, living) for t, _, living in wrong]

    assert registry_judged(*wrong).checked == 6
    assert registry_judged(*wrong, faults=[wiped]).checked == 2
    assert registry_judged(*wrong[:3], *wrong[5:9]).checked == 0
    assert registry_judged(*((1.3 * t, listed, living) for t, listed, living in wrong)).checked == 0  # a busy machine
    assert registry_judged(*without_an_answer).checked == 0


def test_agents_are_not_missed_while_the_broker_is_silent() -> None:
    """An agent that gets no answer cannot know that all others get none; one silent queue excuses nobody."""
    looks = [(float(t), WELL if t < 6 else AWAY, WELL) for t in range(7)]
    silent, queue = (span(3.1, 5.9, "chaos", "stop", "broker", kind=kind) for kind in ("broker.stop", "queue.stop"))

    assert registry_judged(*looks, faults=silent).passed
    assert registry_judged(*looks, faults=queue).violations == ("one lives and is not listed at 6.0",)


READY_AT = 100.0


def backlog(many: int, *, priority: str, first_at: float) -> list[HistoryEntry]:
    """Tasks that could be executed from then on, and start one after the other once the one in question waits."""
    names = [f"{priority} {one}" for one in range(many)]
    accepted = [HistoryEntry(first_at, "client", Type.OK, "accept", name, {"priority": priority}) for name in names]
    return accepted + [
        HistoryEntry(READY_AT + 0.001 * (place + 1), "agent-1", Type.OK, "execute", name)
        for place, name in enumerate(names)
    ]


def waiting(priority: str, *more: HistoryEntry) -> HistoryIndex:
    accepted = HistoryEntry(READY_AT, "client", Type.OK, "accept", "task", {"priority": priority})
    started = HistoryEntry(READY_AT + 3.0, "agent-1", Type.OK, "execute", "task")
    return indexed(accepted, started, *more)


@pytest.mark.parametrize(("many", "passed"), [(MOST_BEFORE_P0, True), (MOST_BEFORE_P0 + 1, False)])
def test_p0_is_started_before_a_backlog_that_was_there_before_it(many: int, passed: bool) -> None:
    check = p0_soon(waiting("p0", *backlog(many, priority="p2", first_at=50.0)))

    assert (check.checked, check.passed) == (1, passed)


@pytest.mark.parametrize("at", [READY_AT - CALM_SECONDS + 0.1, READY_AT + 1.0])
def test_nobody_is_judged_while_something_is_broken_nor_soon_after(at: float) -> None:
    killed = HistoryEntry(at, "chaos", Type.OK, "kill", "agent-1", {"kind": "agent.kill"})

    assert p0_soon(waiting("p0", *backlog(100, priority="p2", first_at=50.0), killed)).checked == 0
    assert p2_progress(waiting("p2", *backlog(1_000, priority="p1", first_at=READY_AT + 0.0001), killed)).checked == 0


def test_neither_a_drain_nor_a_later_p2_excuses_a_wait_but_other_p0s_do() -> None:
    restarted = HistoryEntry(READY_AT + 1.0, "chaos", Type.INFO, "restart", "agent-1", {"life": "agent-1#7"})

    assert not p0_soon(waiting("p0", *backlog(100, priority="p2", first_at=50.0), restarted)).passed

    assert not p2_progress(
        waiting("p2", *backlog(MOST_BEFORE_P2 + 1, priority="p2", first_at=READY_AT + 0.0001))
    ).passed

    assert p0_soon(waiting("p0", *backlog(100, priority="p0", first_at=50.0))).passed


@pytest.mark.parametrize(("priority", "passed"), [("p1", False), ("p0", True)])
def test_p0_does_not_wait_while_many_of_lower_priority_go_on(priority: str, passed: bool) -> None:
    facts = {"priority": priority}
    going_on = [
        HistoryEntry(READY_AT + 0.001 * one, "agent-1", Type.OK, "go on", f"parent{one}", facts)
        for one in range(1, MOST_BEFORE_P0 + 2)
    ]

    assert p0_soon(waiting("p0", *going_on)).passed is passed


@pytest.mark.parametrize(
    ("many", "first_at", "passed"),
    [(MOST_BEFORE_P2, READY_AT + 0.0001, True), (MOST_BEFORE_P2 + 1, READY_AT + 0.0001, False), (1_000, 50.0, True)],
)
def test_p2_is_overtaken_by_so_many_and_waits_for_those_before_it(many: int, first_at: float, passed: bool) -> None:
    check = p2_progress(waiting("p2", *backlog(many, priority="p1", first_at=first_at)))

    assert (check.checked, check.passed) == (1, passed)


@pytest.mark.parametrize(("more", "passed"), [(0, True), (1, False)])
def test_p2_is_overtaken_by_a_round_more_for_each_p2_before_it(more: int, passed: bool) -> None:
    before = backlog(10, priority="p2", first_at=50.0)
    later = backlog(MOST_BEFORE_P2 + 10 * BETWEEN_P2S + more, priority="p1", first_at=READY_AT + 0.0001)

    assert p2_progress(waiting("p2", *before, *later)).passed is passed


def test_node_waits_from_when_the_ledger_says_that_it_can_be_executed() -> None:
    accepted = HistoryEntry(0.0, "client", Type.OK, "accept", "w", {"nodes": {"n": []}, "priorities": {"n": "p0"}})
    ready = HistoryEntry(READY_AT, "dispatcher-1", Type.OK, "state", "w:n", {"state": "ready", "version": 1})
    ran = HistoryEntry(READY_AT + 3.0, "agent-1", Type.OK, "execute", "w:n")
    before = [HistoryEntry(10.0 + one, "agent-1", Type.OK, "execute", f"other{one}") for one in range(40)]
    others = backlog(10, priority="p1", first_at=50.0)

    check = p0_soon(indexed(accepted, ready, ran, *before, *others))

    assert (check.checked, check.passed) == (1, True)


@pytest.mark.parametrize(("name", "passed"), [("next", False), ("first.compensate", True)])
def test_node_that_a_dead_dispatcher_held_up_is_late_but_a_compensation_waits_for_the_workflow_to_fail(
    name: str, passed: bool
) -> None:
    facts = {"nodes": {"first": [], name: ["first"]}, "undo": ["first"]}
    check = recovered(
        indexed(
            HistoryEntry(0.0, "chaos", Type.OK, "kill", "dispatcher-1", {"kind": "dispatcher.kill"}),
            HistoryEntry(1.0, "client", Type.OK, "accept", "run", facts),
            HistoryEntry(5.0, "agent-1", Type.OK, "execute", "run:first"),
            HistoryEntry(9.0, "dispatcher-2", Type.OK, "state", f"run:{name}", {"state": "ready"}),
        )
    )

    assert check.passed is passed


@pytest.mark.parametrize(("seconds", "many"), [(0.05, 0), (0.1, 0), (0.15, 1)])
def test_slot_may_be_free_for_a_moment(seconds: float, many: int) -> None:
    check = no_idle_slot(HistoryIndex(idle(1.0, seconds)))  # 1.1 - 1.0 is a little more than 0.1

    assert (check.checked, len(check.violations)) == (1, many)


def test_slot_that_is_free_soon_after_a_fault_is_not_judged() -> None:
    fault = HistoryEntry(1.0, "chaos", Type.OK, "kill", "agent-2", {"kind": "agent.kill"})

    assert no_idle_slot(HistoryIndex([fault, *idle(5.0, 4.0)])).checked == 0
    assert no_idle_slot(HistoryIndex([fault, *idle(7.0, 2.0)])).violations == (
        f"{FREE_SLOT}, and took none from 7.00 for 2.00 s",
    )


def test_attempt_that_fails_and_is_tried_again_was_a_start() -> None:
    before = taken(Load(completed=20, failed=1, failed_attempts=5, running=2, suspended=1))

    assert taken(Load(completed=20, failed=1, failed_attempts=6, running=2, suspended=1)) == before + 1


@in_virtual_time
async def test_each_start_ends_the_time_of_a_free_slot() -> None:
    loop = asyncio.get_running_loop()
    began, notebook = loop.time(), Notebook(loop.time)
    seen = iter(["", "free, after 3", "free, after 3", "free, after 4", "", "", ""])
    looking = asyncio.ensure_future(keep_looking_at_slots(lambda: next(seen), notebook.of("chaos")))
    await asyncio.sleep(0.29)
    looking.cancel()

    times = [(one.key, round(one.t - began, 2), one.type) for one in notebook.entries]
    assert times == [
        ("free, after 3", 0.05, Type.INVOKE),
        ("free, after 3", 0.15, Type.OK),
        ("free, after 4", 0.15, Type.INVOKE),
        ("free, after 4", 0.2, Type.OK),
    ]


def failed_before_it_was_asked(first: str, *, answer: Type = Type.FAIL) -> Story:
    """A workflow whose approval failed, though two people tried to answer, and whose first node ended so."""
    story = Story(0.0)
    nodes = {"first": [], "gate": ["first"], "next": ["gate"]}
    story.work(CONTESTED, "failed", contested={"gate": "next"}, nodes=nodes)
    said = {"node": GATE, "by": "ada", "granted": True}
    story.note("client", Type.INVOKE, "answer", f"{GATE}:ada", **said)
    story.note("client", answer, "answer", f"{GATE}:ada", **said)
    story.note("reader", Type.OK, "result", f"{CONTESTED}:first", state=first, fence=7)
    story.note("reader", Type.OK, "result", GATE, state="failed", fence=0)
    return story


@pytest.mark.parametrize(("first", "violations"), [("dead", 0), ("failed", 0), ("completed", 1)])
def test_an_approval_without_a_decision_must_have_failed_with_a_node_before_it(first: str, violations: int) -> None:
    found = decided_once(HistoryIndex(failed_before_it_was_asked(first).entries))

    assert (found.checked, len(found.violations)) == (1, violations)


def test_nobody_may_be_told_that_an_answer_counts_or_have_decided_or_go_on_then() -> None:
    told = failed_before_it_was_asked("dead", answer=Type.OK)
    decided = failed_before_it_was_asked("dead")
    decided.note("reader", Type.OK, "decision", GATE, decision="granted", by="ada")
    went_on = failed_before_it_was_asked("dead")
    went_on.whole("agent-1", "execute", f"{CONTESTED}:next")

    for story in (told, decided, went_on):
        assert len(decided_once(HistoryIndex(story.entries)).violations) == 1


def with_a_read_behind(entries: list[HistoryEntry], node: str) -> list[HistoryEntry]:
    """The history, with one more read of `left`, in which nothing is there, behind the first claim of a node."""
    place = next(n for n, one in enumerate(entries) if (one.f, one.key) == ("claim", f"{RESTORED}:{node}")) + 2
    saw = next(one for one in entries if (one.f, one.key) == ("saw", f"{RESTORED}:left"))
    late = replace(saw, t=entries[place - 1].t, val={**saw.val, "there": None})
    assert entries[place - 1].type is Type.OK
    return [*entries[:place], late, *entries[place:]]


def with_another_claim(entries: list[HistoryEntry], node: str) -> list[HistoryEntry]:
    """The history, in which a node is claimed once more at once, in the same run, for another attempt."""
    first = next(n for n, one in enumerate(entries) if (one.f, one.key) == ("claim", f"{RESTORED}:{node}"))
    claim, claimed = entries[first : first + 2]
    again = replace(claim, val={**claim.val, "version": claim.val["version"] + 1, "fence": claim.val["fence"] + 1})
    return [*entries[: first + 2], again, claimed, *entries[first + 2 :]]


@pytest.mark.parametrize(("node", "violations"), [("left", 1), ("join", 0)])
def test_a_read_counts_only_until_what_follows_its_node_is_claimed(node: str, violations: int) -> None:
    checked = restored_whole(HistoryIndex(with_a_read_behind(restored(0.0), node)))

    assert len(checked.violations) == violations


def test_a_read_does_not_count_once_its_node_is_claimed_again() -> None:
    entries = with_another_claim(with_a_read_behind(restored(0.0), "left"), "left")

    assert restored_whole(HistoryIndex(entries)).violations == ()
