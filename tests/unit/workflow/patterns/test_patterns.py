"""Patterns as files, rendered to workflows, and run by a fleet in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect import Agent, TaskFailed
from coditect.errors import CoditectError, InputError, NotFound
from coditect.integrations.merging import agent as merger
from coditect.testing import TestFleet
from coditect.workflow.definition import Definition
from coditect.workflow.documents.file import read_workflow, write_yaml
from coditect.workflow.patterns.merging import MergeRule, identity, merge
from coditect.workflow.patterns.pattern import load_patterns, read_pattern, render_pattern

PACKAGED: dict[str, dict[str, Any]] = {
    "escalation": {"first": "text.guess", "better": "text.think"},
    "majority_vote": {"voters": ["vote.yes", "vote.no", "vote.yes"]},
    "map_reduce": {"map": "number.double", "reduce": "number.sum"},
    "parallel_implementation": {"builders": ["vote.yes", "vote.no"], "judge": "number.sum"},
    "quorum": {"members": ["vote.yes", "vote.no", "vote.hang"], "enough": 2},
    "race": {"racers": ["vote.hang", "vote.yes"]},
    "review_feedback_loop": {"author": "text.draft", "reviewer": "text.review"},
    "self_healing": {"doctors": ["vote.yes", "vote.no"]},
    "saga": {"steps": [{"do": "vote.yes", "undo": "vote.undo"}, {"do": "vote.fail", "undo": "vote.undo"}]},
}


def made(name: str, **given: Any) -> Definition:
    return render_pattern(load_patterns(), name, PACKAGED[name] | given)


def voters() -> tuple[Agent, list[str]]:
    """Return an agent that votes, and the list of what it was asked to do."""
    asked: list[str] = []
    agent = Agent("voter", version="1.0.0", slots=8)

    def offer(capability: str, answer: Callable[[dict[str, Any]], Any]) -> None:
        @agent.capability(capability)
        async def handle(task: dict[str, Any]) -> Any:
            asked.append(capability)
            return answer(task)

    def fail(task: dict[str, Any]) -> None:
        raise TaskFailed("It broke", retryable=False)

    offer("vote.yes", lambda task: "yes")
    offer("vote.no", lambda task: "no")
    offer("vote.fail", fail)
    offer("vote.undo", lambda task: None)
    offer("text.guess", lambda task: {"by": "guess"} | task)
    offer("text.think", lambda task: {"by": "think"})
    offer("text.draft", lambda task: (task["draft"] or 0) + 1)
    offer("text.review", lambda task: {"accepted": task["draft"] >= task["task"]["good_from"]})
    offer("number.double", lambda task: 2 * task["number"])
    offer("number.sum", lambda task: sum(task["values"]))
    return agent, asked


async def run(definition: Definition, given: Any = None) -> tuple[Any, list[str]]:
    agent, asked = voters()
    async with TestFleet(agents=[agent, merger]) as fleet:
        started = await fleet.start(definition, given or {})
        value = await started.result(timeout="1h")
    return value, asked


def test_every_packaged_pattern_is_rendered_and_reads_back_as_a_workflow_of_a_person() -> None:
    assert set(load_patterns()) == set(PACKAGED)
    for name in PACKAGED:
        definition = made(name)
        assert read_workflow(write_yaml(definition).encode()) == definition


async def test_the_answer_of_more_than_half_of_the_voters_counts() -> None:
    value, asked = await run(made("majority_vote"))

    assert value == "yes"
    assert sorted(asked) == ["vote.no", "vote.yes", "vote.yes"]


async def test_a_vote_counts_down_to_its_quorum_and_fails_without_a_majority() -> None:
    value, _ = await run(made("majority_vote", voters=["vote.yes", "vote.fail"]))
    assert value == "yes"

    with pytest.raises(CoditectError, match="Too few"):
        await run(made("majority_vote", voters=["vote.yes", "vote.fail"], quorum=2))

    with pytest.raises(CoditectError, match="more than half"):
        await run(made("majority_vote", voters=["vote.yes", "vote.no"]))


@pytest.mark.parametrize(("confidence", "by"), [(0.9, "guess"), (0.8, "guess"), (0.79, "think"), (None, "think")])
async def test_the_better_agent_is_asked_when_the_confidence_is_low_or_missing(
    confidence: float | None, by: str
) -> None:
    value, asked = await run(made("escalation"), {} if confidence is None else {"confidence": confidence})

    assert value["by"] == by
    assert asked == ["text.guess", "text.think"][: 1 if by == "guess" else 2]


async def test_an_escalation_ends_as_the_better_agent_does() -> None:
    value, _ = await run(made("escalation", first="vote.fail"))

    assert value == {"by": "think"}

    with pytest.raises(CoditectError, match="It broke"):
        await run(made("escalation", better="vote.fail"), {"confidence": 0.1})


@pytest.mark.parametrize("good_from", [1, 2, 3])
async def test_author_and_reviewer_take_turns_until_the_draft_is_accepted(good_from: int) -> None:
    value, asked = await run(made("review_feedback_loop"), {"good_from": good_from})

    assert value == good_from
    assert asked == ["text.draft", "text.review"] * good_from


async def test_a_loop_or_a_race_without_a_good_result_fails() -> None:
    with pytest.raises(CoditectError, match="Too few"):
        await run(made("review_feedback_loop", rounds=2), {"good_from": 3})

    with pytest.raises(CoditectError):
        await run(made("race", racers=["vote.no", "vote.fail"], good="result != 'no'"))


async def test_a_map_is_reduced_to_one_value() -> None:
    value, _ = await run(made("map_reduce", over="input.pages[].{number: @}"), {"pages": [1, 2, 3]})

    assert value == 12


async def test_a_saga_undoes_what_was_done_before_the_step_that_failed() -> None:
    agent, asked = voters()
    async with TestFleet(agents=[agent]) as fleet:
        started = await fleet.start(made("saga"), {})
        with pytest.raises(CoditectError):
            await started.result(timeout="1h")

    assert asked == ["vote.yes", "vote.fail", "vote.undo"]


async def test_a_pattern_may_use_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text(
        "pattern: twice\n"
        "parameters: {voters: {type: capabilities}}\n"
        "nodes:\n"
        "  poll: {pattern: majority_vote, with: {voters: {$param: voters}}, input: {$from: input}}\n"
        "  check: {pattern: majority_vote, with: {voters: [vote.no]}, input: {$from: input}, after: [poll]}\n"
    )
    definition = render_pattern(load_patterns([tmp_path]), "twice", {"voters": ["vote.yes"]})

    value, asked = await run(definition)

    assert (value, asked) == ("no", ["vote.yes", "vote.no"])


def test_a_pattern_that_uses_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop.yaml").write_text("pattern: loop\nnodes:\n  again: {pattern: loop}\n")

    with pytest.raises(InputError, match="too deep"):
        render_pattern(load_patterns([tmp_path]), "loop", {})


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("majority_vote", {"voters": []}, "voters"),
        ("majority_vote", {"voters": ["No Capability"]}, "voters"),
        ("majority_vote", {"voters": ["a.b"], "quorum": 0}, "quorum"),
        ("majority_vote", {"voters": ["a.b"], "quorum": True}, "quorum"),
        ("majority_vote", {"voters": ["a.b"], "colour": 1}, "colour: no such parameter"),
        ("majority_vote", {}, "voters: must be given"),
        ("escalation", {"first": "a.b", "better": "c.d", "confidence": 1.5}, "confidence"),
        ("map_reduce", {"map": "a.b", "reduce": "c.d", "over": "a) || (b"}, "over"),
        ("saga", {"steps": [{"do": "a.b"}]}, "undo"),
    ],
)
def test_parameters_that_do_not_fit_are_refused_by_their_names(name: str, given: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as refused:
        render_pattern(load_patterns(), name, given)

    assert told in str(refused.value.facts["problems"])


def test_the_value_of_a_parameter_is_not_searched_for_gaps() -> None:
    pattern = read_pattern(
        b"pattern: say\nparameters: {what: {type: json}}\nnodes:\n  say: {task: a.b, input: {$param: what}}\n"
    )
    given = {"text": "${what} ${number}", "gap": {"$param": "what"}}

    (node,) = render_pattern({"say": pattern}, "say", {"what": given}).nodes

    assert node.input == given


def test_too_many_nodes_and_unknown_names_and_files_that_are_no_pattern_are_refused(tmp_path: Path) -> None:
    body = "pattern: many\nparameters: {n: {type: count}}\nnodes:\n"
    body += "".join(f"  a{number}: {{for: n, task: a.b}}\n" for number in range(11))
    with pytest.raises(InputError, match="too many nodes"):
        render_pattern({"many": read_pattern(body.encode())}, "many", {"n": 100})
    with pytest.raises(NotFound):
        render_pattern(load_patterns(), "nothing", {})
    with pytest.raises(NotFound):
        load_patterns([tmp_path / "missing"])
    with pytest.raises(InputError, match="no pattern"):
        read_pattern(b"pattern: x\nnodes: {}\ncolour: red\n")
    (tmp_path / "saga.yaml").write_text("pattern: saga\nnodes: {a: {task: a.b}}\n")
    with pytest.raises(InputError, match="one name"):
        load_patterns([tmp_path])


async def test_the_first_good_result_wins_a_race_and_the_others_are_canceled() -> None:
    racer, canceled = slow()
    async with TestFleet(agents=[racer, voters()[0], merger]) as fleet:
        started = await fleet.start(
            made("race", racers=["slow.hang", "vote.no", "slow.yes"], good="result != 'no'"), {}
        )
        value = await started.result(timeout="1h")
        states = {row.name: row.state.value async for row in started.nodes()}
        while not canceled:  # the cancel is on its way
            await asyncio.sleep(0.1)

    assert value == "slow yes"
    assert states == {"racer_1": "canceled", "racer_2": "failed", "racer_3": "completed", "result": "completed"}
    assert canceled == ["slow.hang"]


async def test_a_quorum_ends_with_enough_or_at_the_deadline_with_what_there_is() -> None:
    for members, value, seconds in (
        (["vote.yes", "slow.hang", "vote.no"], ["yes", "no"], 5),
        (["vote.yes", "slow.hang", "vote.fail"], ["yes"], 62),
    ):
        async with TestFleet(agents=[slow()[0], voters()[0], merger]) as fleet:
            begun = asyncio.get_running_loop().time()
            started = await fleet.start(made("quorum", members=members, within="1m"), {})
            assert await started.result(timeout="1h") == value
            assert asyncio.get_running_loop().time() - begun < seconds


def slow() -> tuple[Agent, list[str]]:
    """Return an agent that takes its time, and the list of what was canceled."""
    canceled: list[str] = []
    agent = Agent("slow", version="1.0.0", slots=8)

    @agent.capability("slow.hang", timeout="2h")
    async def hang(task: dict[str, Any]) -> None:
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            canceled.append("slow.hang")
            raise

    @agent.capability("slow.yes")
    async def say(task: dict[str, Any]) -> str:
        await asyncio.sleep(2)
        return "slow yes"

    return agent, canceled


_VALUES = st.lists(st.sampled_from([None, True, False, 0, 1, 1.0, "a", "b", [1], [1.0], {"x": 1}, {"x": True}]))
_LISTS = st.lists(st.lists(st.integers(0, 4)), min_size=1, max_size=5)


def equal(one: Any, other: Any) -> bool:
    """Compare by the definition: types first, so that true is not 1."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


@given(_VALUES)
def test_the_majority_is_what_more_than_half_of_the_results_equal_and_else_there_is_none(values: list[Any]) -> None:
    present = [one for one in values if one is not None]
    winners = [one for one in present if 2 * sum(equal(one, other) for other in present) > len(present)]

    if not winners:
        with pytest.raises(InputError):
            merge(MergeRule.MAJORITY, values)
    else:
        assert json.dumps(merge(MergeRule.MAJORITY, values)) == json.dumps(winners[0])


@given(_VALUES.filter(lambda values: any(one is not None for one in values)))
def test_equal_weights_make_a_weighted_vote_a_majority(values: list[Any]) -> None:
    def outcome(rule: MergeRule, weights: list[float]) -> str:
        try:
            return json.dumps(merge(rule, values, weights=weights))
        except InputError as error:
            return error.sentence

    assert outcome(MergeRule.WEIGHTED, [0.1] * len(values)) == outcome(MergeRule.MAJORITY, [])


@given(_LISTS)
def test_union_and_intersection_are_those_of_sets_in_the_order_of_first_mention(lists: list[list[int]]) -> None:
    mentioned = list(dict.fromkeys(one for each in lists for one in each))

    assert merge(MergeRule.UNION, lists) == mentioned
    in_all = [one for one in dict.fromkeys(lists[0]) if all(one in each for each in lists)]
    assert merge(MergeRule.INTERSECTION, lists) == in_all


@given(_VALUES, _VALUES)
def test_two_values_have_one_identity_exactly_when_they_are_equal(one: list[Any], other: list[Any]) -> None:
    assert (identity(one) == identity(other)) is equal(one, other)


@given(_VALUES.filter(lambda values: any(one is not None for one in values)))
def test_missing_results_never_count(values: list[Any]) -> None:
    present = [one for one in values if one is not None]

    assert merge(MergeRule.COMBINE, values) == present
    assert json.dumps(merge(MergeRule.FIRST, values)) == json.dumps(present[0])
    assert json.dumps(merge(MergeRule.LAST, values)) == json.dumps(present[-1])


def test_what_has_no_winner_or_does_not_fit_the_rule_is_refused() -> None:
    with pytest.raises(InputError, match="more than half"):
        merge(MergeRule.MAJORITY, ["a", "b", "b", "a"])
    with pytest.raises(InputError, match="more than half"):
        merge(MergeRule.WEIGHTED, ["a", "b", "b"], weights=[0.3, 0.1, 0.2])

    with pytest.raises(InputError, match="Only a weighted vote"):
        merge(MergeRule.MAJORITY, ["a"], weights=[1.0])
    with pytest.raises(InputError, match="Too few"):
        merge(MergeRule.FIRST, [None, "a"], least=2)
    with pytest.raises(InputError, match="merges lists"):
        merge(MergeRule.UNION, [["a"], "a"])

    assert merge(MergeRule.WEIGHTED, [None, "a", "b"], weights=[9, 2, 1]) == "a"


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_wrong_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(InputError):
        merge(MergeRule.WEIGHTED, ["a", "a"], weights=weights)
