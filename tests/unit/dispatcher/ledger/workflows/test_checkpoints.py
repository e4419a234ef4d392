"""Checkpoints of a workflow and its restore: what stays, what is undone, and what runs again under which fence."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chaos.simulated_store import SimulatedDatabase
from coditect import Workflow
from coditect.errors import InputError, NotFound, Retryable, VersionConflict
from coditect.model.result import Outcome
from coditect.wire.control import Verb, workflow_space
from coditect.wire.json import loads
from coditect.workflow.definition import Call, Definition, From
from coditect.workflow.states import TaskState, WorkflowState
from dispatcher.coordination import state
from dispatcher.ledger.commands import Asked, Continue
from dispatcher.ledger.effects import Publication
from dispatcher.ledger.keyspace import AGAIN, COMPENSATE
from dispatcher.ledger.nodes.advance import MAX_DEPENDENTS
from dispatcher.ledger.workflows.checkpoints import positions, requests
from tests.unit.dispatcher.ledger.workflows.restored import Played, is_over, plan, restore
from tests.unit.dispatcher.ledger.workflows.test_redrive import check_tallies
from tests.unit.dispatcher.lone_ledger import Ledger, completed, failed, few_steps, some_graph, tasks


def chain(*, compensated: bool = True) -> Workflow:
    flow = Workflow("trip")
    undo: dict[str, Any] = {"compensate": "undo"} if compensated else {}
    hotel = flow.task("book", name="hotel", **undo)
    flight = flow.task("book", {"room": From("results.hotel")}, name="flight", after=[hotel], **undo)
    flow.task("book", {"seat": From("results.flight")}, name="car", after=[flight], **undo)
    return flow


@pytest.mark.parametrize("fails", [False, True])
async def test_nodes_that_completed_later_run_again_with_new_fences_and_the_new_results(
    ledger: Ledger, fails: bool
) -> None:
    await ledger.start(chain(compensated=False))
    await ledger.play(Played(*["car"] * fails))
    ended, before, again = await ledger.state(), await ledger.node("car"), Played(tells=" again")
    await restore(ledger, "hotel")
    await ledger.play(again)

    assert ended is (WorkflowState.FAILED if fails else WorkflowState.COMPLETED)
    assert again.order == ["flight", "car"]
    assert again.inputs == {"flight": {"room": "hotel"}, "car": {"seat": "flight again"}}
    assert (await ledger.node("car")).fence > before.fence
    assert await ledger.state() is WorkflowState.COMPLETED
    assert (await ledger.run()).lasts == {"completed": 1}
    await is_over(ledger)


async def test_late_result_of_a_discarded_attempt_is_refused(ledger: Ledger) -> None:
    await ledger.start(chain(compensated=False))
    await ledger.complete("hotel")
    stale = ledger.published.pop()

    await restore(ledger, "hotel")
    await ledger.batch(ledger.finished(stale, completed("stale")))
    fresh = ledger.published.pop()
    await ledger.batch(ledger.finished(stale, completed("stale")))
    await ledger.batch(ledger.finished(fresh, completed("fresh")))

    canceled = [(at.node, number) for at, number in ledger.cancels]
    assert canceled == [("flight", stale.number)]
    assert sum(effects.late for effects in ledger.seen) == 2
    assert loads(ledger.published.pop().task.body) == {"seat": "fresh"}


@pytest.mark.parametrize("fails", [False, True])
async def test_discarded_nodes_are_undone_in_reverse_before_any_runs_again(ledger: Ledger, fails: bool) -> None:
    await ledger.start(chain())
    await ledger.play(Played())
    again = Played(*["car"] * fails, tells=" again")
    told = await restore(ledger, "hotel")
    under_way = [one.node_key.node for one in ledger.published]
    await ledger.play(again)

    assert (told["state"], under_way) == ("compensating", ["car.compensate"])
    assert again.order[:4] == ["car.compensate", "flight.compensate", "flight", "car"]
    flight = "flight again" if fails else "flight"  # the last result that it had
    assert again.inputs["flight.compensate"] == {"input": {"room": "hotel"}, "result": flight}
    assert again.order[4:] == ["flight.compensate", "hotel.compensate"] * fails
    assert await ledger.state() is (WorkflowState.COMPENSATED if fails else WorkflowState.COMPLETED)
    rows = [row for _, row in await ledger.rows(COMPENSATE, "w")]
    assert rows == ([] if fails else [b"hotel", b"flight", b"car"])
    await is_over(ledger)


async def test_compensation_that_fails_ends_the_restore_and_a_resume_goes_on_with_it(ledger: Ledger) -> None:
    await ledger.start(chain())
    await ledger.complete("hotel", "flight")

    await restore(ledger, "hotel")
    ledger.published = ledger.published[1:]  # the car's is called off
    await ledger.play(Played("flight.compensate"))
    before, again = await ledger.run(), Played()
    with pytest.raises(InputError, match="compensation of an earlier restore has failed") as refused:
        await restore(ledger, "hotel")
    await ledger.ask(Verb.RESUME, {"workflow": "w"})
    await ledger.play(again)

    assert "workflow resume w" in str(refused.value.facts["fix"])
    assert (before.state, before.open) == (WorkflowState.COMPENSATION_FAILED, 0)
    assert again.order == ["flight.compensate", "flight", "car"]
    assert await ledger.state() is WorkflowState.COMPLETED
    await is_over(ledger)


async def test_paused_workflow_stays_paused_and_runs_the_discarded_nodes_when_it_is_resumed(ledger: Ledger) -> None:
    await ledger.start(chain())
    await ledger.complete("hotel")
    await ledger.ask(Verb.PAUSE, {"workflow": "w"})
    await ledger.complete("flight")
    played = Played()

    await restore(ledger, "hotel")
    await ledger.play(played)
    paused = await ledger.state()
    await ledger.ask(Verb.RESUME, {"workflow": "w"})
    await ledger.play(played)

    assert paused is WorkflowState.PAUSED
    assert played.order == ["flight.compensate", "flight", "car"]


async def test_what_ended_in_the_millisecond_of_a_checkpoint_stays(ledger: Ledger) -> None:
    await ledger.start(tasks(one="", two="", three="one", four="three", five="two"))
    await ledger.play(Played())
    again = Played()

    await restore(ledger, "one")
    await ledger.play(again)

    assert again.order == ["three", "four"]


async def test_checkpoint_on_request_discards_what_ended_after_it_and_later_ones_are_forgotten(ledger: Ledger) -> None:
    await ledger.start(chain(compensated=False))
    await ledger.complete("hotel")
    await ledger.ask(Verb.CHECKPOINT, {"workflow": "w", "checkpoint": "booked", "writer": "cli"})
    await ledger.complete("flight")
    await ledger.ask(Verb.CHECKPOINT, {"workflow": "w", "checkpoint": "later"})
    ledger.published.clear()
    named = (await ledger.read(requests.listing, workflow="w"))["checkpoints"]
    await restore(ledger, "booked")
    for forgotten in ("later", "flight"):
        with pytest.raises(NotFound, match="no such checkpoint"):
            await restore(ledger, forgotten)
    again = Played()
    await ledger.play(again)

    assert again.order == ["flight", "car"]
    booked = next(row for row in named if row["checkpoint"] == "booked")
    assert (booked["node"], booked["by"]) == ("", "cli")
    restores = (await ledger.read(requests.listing, workflow="w"))["restores"]
    assert [(row["checkpoint"], row["by"]) for row in restores] == [("booked", "ada")]


async def test_checkpoint_with_the_name_of_a_node_or_of_an_ended_workflow_is_refused(ledger: Ledger) -> None:
    async def refuse(sentence: str, **body: Any) -> None:
        with pytest.raises(InputError, match=sentence):
            await ledger.ask(Verb.CHECKPOINT, {"workflow": "w", **body})

    await ledger.start(chain(compensated=False))
    await refuse("node of the workflow has this name", checkpoint="car")
    await refuse("checkpoint's name is letters", checkpoint="a b")
    await refuse("not the present one", checkpoint="x", by={"workflow": "w", "node": "hotels", "fence": 1})
    for unknown in ("hotel", "nothing", "hotel.compensate"):
        with pytest.raises(NotFound, match="no such checkpoint"):
            await restore(ledger, unknown)
    await ledger.play(Played())
    await refuse("has ended", checkpoint="late")


async def test_second_restore_and_changes_wait_until_a_restore_is_done(ledger: Ledger) -> None:
    await ledger.start(chain())
    await ledger.play(Played())
    await restore(ledger, "hotel")
    with pytest.raises(Retryable, match="earlier restore is not done"):
        await restore(ledger, "hotel")
    changes: dict[Verb, dict[str, Any]] = {
        Verb.CHECKPOINT: {"workflow": "w", "checkpoint": "x"},
        Verb.STATE_PUT: {"space": workflow_space("w"), "key": "k", "value": 1},
    }
    for verb, body in changes.items():
        with pytest.raises(Retryable, match="being restored"):
            await ledger.ask(verb, body)


async def test_plan_tells_what_cannot_be_undone_and_a_restore_by_an_old_plan_is_refused(ledger: Ledger) -> None:
    flow = Workflow("mixed")
    one = flow.task("c", name="one")
    two = flow.task("c", name="two", after=[one], compensate="undo")
    three = flow.task("c", name="three", after=[two])
    flow.task("c", name="four", after=[three], compensate="undo")
    await ledger.start(flow)
    await ledger.complete("one", "two", "three")
    planned = await plan(ledger, "one")

    await ledger.complete("four")

    assert [(one["node"], one["compensated"]) for one in planned["nodes"]] == [
        ("four", False), ("three", False), ("two", True),
    ]  # fmt: skip
    asked = {"workflow": "w", "checkpoint": "one", "token": planned["token"], "by": "ada"}
    with pytest.raises(VersionConflict, match="went on since"):
        await ledger.ask(Verb.RESTORE, asked)


async def test_nodes_that_run_again_or_wait_after_an_attempt_are_in_the_next_plan_and_no_others(ledger: Ledger) -> None:
    await ledger.start(chain(compensated=False))
    await ledger.play(Played())
    ledger.room[""] = 0
    await restore(ledger, "hotel")
    plans = [await plan(ledger, "hotel")]
    ledger.room[""] = 9
    await ledger.fill("book", 9)
    plans.append(await plan(ledger, "hotel"))
    ledger.room[""] = 0
    await ledger.end("flight", replace(failed(retryable=True), retry_ms=1_000))
    await ledger.pass_time(2)
    plans.append(await plan(ledger, "hotel"))

    assert (await ledger.node("flight")).state is TaskState.READY
    assert [[one["node"] for one in told["nodes"]] for told in plans] == [[], ["flight"], ["flight"]]
    assert plans[1]["token"] != plans[2]["token"]


@pytest.mark.parametrize("compensate", [True, False])
async def test_canceled_and_compensated_workflows_are_not_restored(ledger: Ledger, compensate: bool) -> None:
    await ledger.start(chain())
    await ledger.complete("hotel")
    await ledger.ask(Verb.CANCEL, {"workflow": "w", "compensate": compensate})
    await ledger.play(Played())

    with pytest.raises(InputError, match="compensated workflow" if compensate else "canceled workflow"):
        await restore(ledger, "hotel")


async def test_shared_state_is_what_it_was_and_its_versions_go_on(ledger: Ledger) -> None:
    await ledger.start(chain(compensated=False))

    async def put(key: str, value: Any, **more: Any) -> int:
        body = {"space": workflow_space("w"), "key": key, "value": value} | more
        return int((await ledger.ask(Verb.STATE_PUT, body))["version"])

    async def get(key: str) -> tuple[Any, int, str]:
        entry = await ledger.read(state.get, space=workflow_space("w"), key=key)
        return entry["value"], entry["version"], entry["writer"]

    await put("plan", "first")
    await put("gone", "there", task="w:hotel")
    await put("same", 1)
    await ledger.complete("hotel")
    await put("plan", "of the flight", task="w:flight")  # in the same millisecond
    ledger.now_ms += 1
    await put("gone", None, delete=True)
    await put("new", 1)
    await ledger.play(Played())

    await restore(ledger, "hotel")

    assert await get("gone") == ("there", 3, "ada")
    assert await get("new") == (None, 2, "ada")
    assert await get("same") == (1, 1, "")
    assert (await get("plan"))[0] == "of the flight"  # the node had not ended: it was there, or a client's


async def test_restore_is_refused_when_the_shared_state_of_its_checkpoint_is_not_kept(ledger: Ledger) -> None:
    await ledger.start(chain(compensated=False))
    body = {"space": workflow_space("w"), "key": "count"}
    await ledger.complete("hotel")
    ledger.now_ms += 1
    for number in range(21):
        await ledger.ask(Verb.STATE_PUT, body | {"value": number})

    with pytest.raises(InputError, match="not kept any more"):
        await restore(ledger, "hotel")

    assert await ledger.state() is WorkflowState.RUNNING


async def test_node_that_completes_after_a_restore_is_undone_in_its_own_place(ledger: Ledger) -> None:
    flow = Workflow("order")
    first = flow.task("c", name="first")
    flow.task("c", name="next", after=[first])
    flow.task("c", name="kept", compensate="undo")
    flow.task("c", name="other", compensate="undo")
    await ledger.start(flow)
    await ledger.complete("first", "next", "kept")

    await restore(ledger, "first")
    ledger.published = ledger.published[-2:]
    assert [publication.node_key.node for publication in ledger.published] == ["next", "other"]
    await ledger.complete("other")
    await ledger.end("next", failed())
    played = Played()
    await ledger.play(played)

    assert played.order == ["other.compensate", "kept.compensate"]


@pytest.mark.parametrize("passes", [True, False])
async def test_checkpoint_whose_many_dependents_ended_with_it_is_refused(prompt_ledger: Ledger, passes: bool) -> None:
    ledger = prompt_ledger
    await ledger.start(tasks(first="", **{f"n{number}": "first" for number in range(positions.MOST_LATER + 1)}))
    await ledger.complete("first")
    ledger.now_ms += passes
    await ledger.batch(*[ledger.finished(one, completed()) for one in ledger.published])
    ledger.published.clear()

    if passes:
        await restore(ledger, "first")
        assert len(ledger.published) == positions.MOST_LATER + 1
    else:
        with pytest.raises(InputError, match="in the millisecond of this checkpoint"):
            await restore(ledger, "first")


class Fanned(Played):
    def __init__(self, *items: str) -> None:
        super().__init__()
        self.items = items

    def __call__(self, publication: Publication) -> Outcome:
        outcome = super().__call__(publication)
        return completed(list(self.items)) if publication.node_key.node == "first" else outcome


@pytest.mark.parametrize("items", [("x", "y"), ("x", "y", "z", "u")])
async def test_map_runs_again_over_the_new_list_whatever_the_length(ledger: Ledger, items: tuple[str, ...]) -> None:
    flow = Workflow("fan")
    before = flow.task("c", name="before")
    flow.task("list", name="first", after=[before])
    flow.map("one", From("results.first"), {"it": From("item")}, limit=50, name="each", after=["first"])
    flow.task("sum", From("results.each"), name="sum", after=["each"])
    await ledger.start(flow)
    await ledger.play(Fanned("a", "b", "c"))
    again = Fanned(*items)

    await restore(ledger, "before")
    await ledger.play(again)

    assert again.inputs["sum"] == [f"each[{number}]" for number in range(len(items))]
    assert [again.inputs[f"each[{number}]"] for number in range(len(items))] == [{"it": item} for item in items]
    assert await ledger.state() is WorkflowState.COMPLETED
    await is_over(ledger)


async def test_elements_that_completed_after_a_checkpoint_are_undone_and_run_again(ledger: Ledger) -> None:
    flow = Workflow("fan")
    flow.map("one", ["a", "b", "c"], {"it": From("item")}, name="each", compensate="undo")
    await ledger.start(flow)
    await ledger.complete("each[0]")
    await ledger.ask(Verb.CHECKPOINT, {"workflow": "w", "checkpoint": "one-done"})
    await ledger.play(Played())
    again = Played()

    await restore(ledger, "one-done")
    await ledger.play(again)

    assert sorted(again.order) == ["each[1]", "each[1].compensate", "each[2]", "each[2].compensate"]
    assert await ledger.state() is WorkflowState.COMPLETED
    await is_over(ledger)


async def test_wait_approval_and_signal_are_waited_for_again_and_a_signal_that_came_is_not_lost(ledger: Ledger) -> None:
    flow = Workflow("waits")
    first = flow.task("c", name="first")
    wait = flow.wait("2h", name="pause", after=[first])
    go = flow.signal("go", name="go", after=[first])
    ask = flow.approval("Ship it?", name="ask", after=[first])
    flow.task("c", {"go": From("results.go")}, name="last", after=[wait, go, ask])
    await ledger.start(flow)
    await ledger.complete("first")
    await ledger.pass_time(1)
    await ledger.ask(Verb.SIGNAL, {"workflow": "w", "signal": "go", "value": 7, "id": "s1"})
    await ledger.ask(Verb.ANSWER, {"workflow": "w", "node": "ask", "granted": True, "by": "ada"})
    await ledger.pass_time(7_200)
    await ledger.play(Played())

    await restore(ledger, "first")
    states = await ledger.states()
    await ledger.ask(Verb.ANSWER, {"workflow": "w", "node": "ask", "granted": True, "by": "ada"})
    await ledger.pass_time(7_200)
    again = Played()
    await ledger.play(again)

    assert (states["pause"], states["ask"]) == (TaskState.WAITING, TaskState.AWAITING_APPROVAL)
    assert states["go"] is TaskState.COMPLETED
    assert again.inputs == {"last": {"go": 7}}


async def test_loop_of_a_discarded_node_begins_with_its_first_iteration(ledger: Ledger) -> None:
    flow = Workflow("loop")
    first = flow.task("c", name="first")
    flow.task("c", name="poll", after=[first], repeat={"until": "result == `2`", "most": 2})
    await ledger.start(flow)
    await ledger.complete("first")
    await ledger.end("poll", completed(1))

    await restore(ledger, "first")
    await ledger.end("poll", completed(1))
    await ledger.end("poll", completed(2))

    assert await ledger.state() is WorkflowState.COMPLETED


async def test_node_that_waits_for_any_predecessor_stays_when_it_had_run_by_then(ledger: Ledger) -> None:
    flow = Workflow("any")
    quick, slow = flow.task("c", name="quick"), flow.task("c", name="slow")
    flow.task("c", name="either", after=[quick, slow], join="any")
    await ledger.start(flow)
    for name in ("quick", "either", "slow"):
        await ledger.complete(name)
        ledger.now_ms += 1
    again = Played()

    await restore(ledger, "either")
    await ledger.play(again)

    assert again.order == ["slow"]
    assert await ledger.state() is WorkflowState.COMPLETED
    await is_over(ledger)


async def test_retry_that_waits_for_its_time_is_discarded_with_its_timer(ledger: Ledger) -> None:
    await ledger.start(chain(compensated=False))
    await ledger.complete("hotel")
    await ledger.end("flight", replace(failed(retryable=True), retry_ms=700))

    await restore(ledger, "hotel")
    await ledger.pass_time(600)

    assert [one.node_key.node for one in ledger.published] == ["flight"]
    assert (await ledger.node("flight")).attempt == 1


async def test_cancel_during_a_restore_ends_the_workflow_and_the_restore(ledger: Ledger) -> None:
    await ledger.start(chain(compensated=False))
    await ledger.play(Played())
    ledger.goes_on = False
    with pytest.MonkeyPatch.context() as patched:
        few_steps(patched, 1)
        await restore(ledger, "hotel")
        await ledger.ask(Verb.CANCEL, {"workflow": "w"})
    for _ in range(20):
        await ledger.go_on()

    assert await ledger.state() is WorkflowState.CANCELED
    await is_over(ledger)


class Agents:
    """Agents that fail at random; what they did and undid, and under which fences."""

    def __init__(self, random: Random, *, fail: float) -> None:
        self.random = random
        self.fail = fail
        self.fences: dict[str, int] = {}
        self.effects: Counter[str] = Counter()

    def __call__(self, publication: Publication) -> Outcome:
        name, fence = publication.node_key.node, publication.task.owner.fence if publication.task.owner else 0
        assert fence > self.fences.get(name, 0), f"{name} runs under an old fence"
        self.fences[name] = fence
        if self.random.random() < self.fail:
            return failed()
        self.effects[name.removesuffix(".compensate")] += -1 if name.endswith(".compensate") else 1
        return completed(name)


async def some_restore(ledger: Ledger, random: Random) -> None:
    """Restore to a random checkpoint, and check that what stays is untouched and what does not is discarded."""
    checkpoints = (await ledger.read(requests.listing, workflow="w"))["checkpoints"]
    if not checkpoints:
        return
    chosen = random.choice(checkpoints)
    before = {name: await ledger.node(name) for name in await ledger.states()}
    try:
        await restore(ledger, chosen["checkpoint"])
    except (InputError, Retryable):
        return
    while (await ledger.run()).restoring is not None and ledger.goes_on is False:
        if (await ledger.state()).value == "compensating":
            return
        await ledger.batch(Continue())
    if (await ledger.run()).restoring is not None:
        return
    for name, row in before.items():
        if row.finished_ms is not None and row.finished_ms < chosen["at_ms"] and not name.endswith(".compensate"):
            assert (await ledger.node(name)) == row
    assert (await ledger.node(chosen["node"])).state is TaskState.COMPLETED if chosen["node"] else True


async def some_step(ledger: Ledger, random: Random, act: Agents) -> None:
    ledger.now_ms += random.choice([0, 0, 1])
    draw = random.random()
    if draw < 0.15:
        await some_restore(ledger, random)
    elif draw < 0.25:
        await ledger.batch(Asked(Verb.CHECKPOINT, {"workflow": "w", "checkpoint": f"c{random.randrange(3)}"}))
    elif draw < 0.4:
        await ledger.batch(Continue())
    elif draw < 0.5 and not ledger.published:
        await ledger.batch(Asked(Verb.RESUME, {"workflow": "w"}))
    elif ledger.published:
        await finish(ledger, ledger.published.pop(random.randrange(len(ledger.published))), act)


async def finish(ledger: Ledger, one: Publication, act: Agents) -> None:
    row = await ledger.node(one.node_key.node)
    if row.publication != one.number or row.state not in (TaskState.PUBLISHED, TaskState.WORKING):
        known = len(ledger.seen)
        await ledger.batch(ledger.finished(one, completed("of a discarded attempt")))
        assert not ledger.seen[known].results, "a stale result counts"
        return
    await ledger.batch(ledger.finished(one, act(one)))


async def drawn(seed: int, steps: int, definition: Definition, *, goes_on: bool, fail: float) -> tuple[Ledger, Agents]:
    random = Random(seed)
    act = Agents(random, fail=fail)
    ledger = await Ledger.open(await SimulatedDatabase().__aenter__())
    with pytest.MonkeyPatch.context() as patched:
        few_steps(patched, steps)
        await ledger.start(definition)
        ledger.goes_on = goes_on
        for _ in range(60):
            await some_step(ledger, random, act)
            if not any("compensate" in name for name in await ledger.states()):
                await check_tallies(ledger, definition)
        ledger.goes_on, act.fail = True, 0
        await ledger.batch(Continue())
        while True:
            while ledger.published:
                await finish(ledger, ledger.published.pop(), act)
            run = await ledger.run()
            if run.state.value != "compensation_failed":
                break
            await ledger.ask(Verb.RESUME, {"workflow": "w"})
    return ledger, act


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 5, MAX_DEPENDENTS]), st.booleans())
@example(8, 1, False)  # a node of a restore may run, and its ends were taken back before
async def test_restored_workflow_ends_with_every_end_counted_once(seed: int, steps: int, goes_on: bool) -> None:
    definition = some_graph(Random(seed))
    ledger, _ = await drawn(seed, steps, definition, goes_on=goes_on, fail=0.3)
    await check_tallies(ledger, definition)

    run = await ledger.run()
    assert run.state.terminal
    assert (run.todo, run.open, run.redriving, run.restoring) == (0, 0, False, None)
    assert await ledger.rows(AGAIN) == []


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 2, 5, MAX_DEPENDENTS]), st.booleans(), st.sampled_from([0.0, 0.1]))
async def test_what_is_done_is_done_once_more_than_undone(seed: int, steps: int, goes_on: bool, fail: float) -> None:
    plain, random = some_graph(Random(seed)), Random(seed)
    undone = {node.name for node in plain.nodes if random.random() < 0.7}
    nodes = [
        replace(node, work=replace(node.work, compensate="undo"))
        if isinstance(node.work, Call) and node.name in undone
        else node
        for node in plain.nodes
    ]
    ledger, act = await drawn(seed, steps, Definition("undone", tuple(nodes)), goes_on=goes_on, fail=fail)

    run, states = await ledger.run(), await ledger.states()
    assert run.state.terminal
    assert (run.todo, run.open, run.redriving, run.restoring) == (0, 0, False, None)
    listed = [name.decode() for _, name in await ledger.rows(COMPENSATE)]
    assert len(listed) == run.to_compensate == len(set(listed))
    done = {name: count for name, count in act.effects.items() if name in undone}
    assert {name for name, count in done.items() if count} == set(listed)
    assert set(done.values()) <= {0, 1}
    if run.ended is None:
        assert {name for name in undone if states[name] is TaskState.COMPLETED} == set(listed)
