"""Names: capabilities, ids, routing keys, and addresses of replies; no chosen id leads to another process."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coditect.errors import InputError
from coditect.model.capability import MAX_NAME_LENGTH, Priority, check_capability_name, nearest_names
from coditect.model.ids import AgentId, TaskId, child_task_id, is_uuid
from coditect.wire import routing
from coditect.wire.routing import Address, parse_task_key, reply_address, task_key
from tests.unit.model.strategies import capabilities


@given(capabilities, st.sampled_from(Priority))
def test_task_key_is_parsed_back(capability: str, priority: Priority) -> None:
    assert parse_task_key(task_key(capability, priority)) == (capability, priority)


@given(capabilities)
def test_key_without_a_level_is_p1(capability: str) -> None:
    assert parse_task_key(capability) == (capability, Priority.P1)


@given(capabilities)
def test_capability_of_lower_case_words_is_accepted_as_it_is(name: str) -> None:
    assert check_capability_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "a.", ".a", "a..b", "A", "a b", "a/b", "*", "#", "a.*", "_a", "ä", "a\n", "p1", "code.p2", "a" * 101],
)
def test_what_is_no_capability_is_refused(name: str) -> None:
    with pytest.raises(InputError):
        check_capability_name(name)


@given(st.text(string.printable, max_size=30))
def test_accepted_capability_is_safe_in_a_routing_key(name: str) -> None:
    try:
        check_capability_name(name)
    except InputError:
        return

    assert not set(name) & set("*# /\n")
    assert parse_task_key(name) == (name, Priority.P1)


def test_names_on_the_broker_of_the_longest_capability_fit_into_255_bytes() -> None:
    longest = "a" * MAX_NAME_LENGTH
    agent = AgentId("b" * 200 + "-0000aaaa")

    names = [
        routing.task_queue(longest, Priority.P0),
        routing.dead_queue(longest),
        routing.inbox_queue(agent),
        routing.next_queue(agent),
        routing.next_key(agent),
        routing.mailbox_queue(agent),
        routing.mailbox_key(agent),
    ]

    assert max(len(name.encode()) for name in names) <= 255


def test_nearest_names_come_best_first() -> None:
    known = ["code.review", "code.rewrite", "docs.generate", "tests.run"]

    assert nearest_names("code.reviews", known)[0] == "code.review"
    assert nearest_names("zzz", known) == ()


@pytest.mark.parametrize(
    ("reply_to", "address"),
    [
        ("reply.client-1", Address(routing.REPLIES, "reply.client-1")),
        ("amq.gen-XyZ", Address("", "amq.gen-XyZ")),
        ("my-queue", Address("", "my-queue")),
        ("controllers.reply", Address("", "controllers.reply")),
        ("unrouted-answers", Address("", "unrouted-answers")),
        ("replying", Address("", "replying")),
    ],
)
def test_reply_goes_to_the_reply_exchange_or_straight_to_the_queue(reply_to: str, address: Address) -> None:
    assert reply_address(reply_to) == address


@pytest.mark.parametrize(
    "reply_to",
    [
        None, "", "tasks.code.review.p0", "agent.a-1.mail", "results.3", "retry.100", "dead.code.review",
        "control", "control.2", "unrouted", "unrouted.notices", "coditect.epoch.1", "x" * 256, "ü" * 128,
    ],
)  # fmt: skip
def test_no_reply_goes_to_the_systems_own_queues(reply_to: str | None) -> None:
    assert reply_address(reply_to) is None


PARTS = st.sampled_from(["tasks.", "agent.", "dead.", "reply.", "control", "results.", ".", "a", "ü" * 200])


@given(st.text(st.characters(), max_size=300) | st.lists(PARTS, max_size=5).map("".join))
def test_any_reply_address_fits_the_wire_and_spares_the_task_queues(reply_to: str) -> None:
    address = reply_address(reply_to)

    if address is not None:
        assert len(address.routing_key.encode(errors="replace")) <= 255
        assert not address.routing_key.startswith(("tasks.", "agent.", "dead."))


@given(st.text(max_size=40).map(TaskId), st.binary(max_size=40), st.integers(0, 10_000))
def test_child_has_the_same_id_whenever_its_parent_asks_the_same_again(
    parent: TaskId, body: bytes, ordinal: int
) -> None:
    child = child_task_id(parent, "a.b", body, ordinal)

    assert is_uuid(child)
    assert child == child_task_id(parent, "a.b", body, ordinal)
    others = {
        child_task_id(parent, "a.b", body, ordinal + 1),
        child_task_id(parent, "a.c", body, ordinal),
        child_task_id(parent, "a.b", body + b"!", ordinal),
        child_task_id(TaskId(parent + "'"), "a.b", body, ordinal),
    }
    assert len(others - {child}) == 4


def test_child_id_is_pinned_over_versions() -> None:
    assert child_task_id(TaskId("parent"), "a.b", b"{}", 1) == PINNED_CHILD


PINNED_CHILD = "c987e28c-da4d-5257-97fb-359d8e7b611b"


@pytest.mark.parametrize(
    ("text", "answer"), [("0192f0c1-0000-7000-8000-000000000000", True), ("id-1", False), ("", False)]
)
def test_uuid_is_told_from_other_ids(text: str, answer: bool) -> None:
    assert is_uuid(text) is answer


AGENT = AgentId("orders-0123abcd")
DISPATCHER = "dispatcher-7-0123abcd"
CLIENTS = ("orders", "client-0123456789ab", "next.orders")
REPLIES = ("monitor-" + DISPATCHER, "pings-" + DISPATCHER, "question-0123456789ab", "status-0123abcd9", *CLIENTS)


def keys_of(agent_id: AgentId) -> set[str]:
    """The routing keys on `coditect.agents` that lead to an agent process."""
    return {str(agent_id), routing.next_key(agent_id), routing.mailbox_key(agent_id)}


def queues_of(agent_id: AgentId) -> set[str]:
    """The queues of an agent process."""
    return {*routing.own_queues(agent_id), routing.agent_replies(agent_id)}


QUEUES = queues_of(AGENT) | {f"reply.{name}" for name in REPLIES} | {f"events.{DISPATCHER}"}
NAMES = {*keys_of(AGENT), *QUEUES, *REPLIES, DISPATCHER}


@pytest.mark.parametrize("chosen", sorted((NAMES | {name.partition(".")[2] for name in NAMES}) - {"", AGENT}))
def test_a_chosen_id_is_refused_or_has_names_of_its_own(chosen: str) -> None:
    found = AgentId(chosen)
    taken = keys_of(found) & keys_of(AGENT) or queues_of(found) & QUEUES or chosen == DISPATCHER

    assert routing.is_others_name(chosen) or not taken


def test_the_requester_is_known_by_the_reply_queue() -> None:
    for agent_id in (AGENT, AgentId("Code_Reviewer.01")):
        assert routing.process_of(routing.agent_replies(agent_id)) == agent_id
    assert routing.process_of("reply.orders") == "orders"
    assert not routing.is_others_name("monitor-0123abcd")
