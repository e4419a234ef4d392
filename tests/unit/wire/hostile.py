"""Messages of publishers who mean harm: forged owners and replies, every return address, histories, numbers, bodies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from coditect.model.ids import TaskId, child_task_id
from coditect.wire.json import dumps
from tests.integration.wire.strategies import BODIES, header_values, short_text, strange_messages

ANSWERS = "answers.of.a.stranger"
LEDGER = "somebodys.ledger"
PARENT = TaskId("parent-of-our-own")
QUESTION = {"say": "ours"}
PREFIX = "x-coditect-"

OWN_RETURN_ADDRESSES = ("reply.parent-1", "reply.client-test", "reply.dispatcher-1", "reply.nobody", "reply.")
SYSTEM_QUEUES = (
    "tasks.strange.work.p1", "dead.strange.work", "results.0", "control.0", "control", "unrouted", "retry.100",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Hostile:
    """One message, and where it is published."""

    key: str
    body: bytes
    headers: dict[str, Any]
    message_id: str | None
    correlation_id: str | None
    reply_to: str | None
    type: str | None
    expiration_ms: int | None


def nested(levels: int) -> str:
    """A history that is nested so deep."""
    return '[{"type":"E","message":' + "[" * levels + "]" * levels + "}]"


def histories() -> st.SearchStrategy[Any]:
    """What may stand in `x-coditect-errors`."""
    return st.one_of(
        st.integers(1, 1_200).map(nested),
        st.integers(1, 3_000).map(lambda many: "[" + ",".join(["{}"] * many) + "]"),
        st.sampled_from(["", "[", "{}", "null", "[1,2]", '[{"attempt":"x"}]', "[" * 30_000, "x" * 33_000]),
        st.just(dumps([{"message": "m" * 499, "attempt": 1}] * 50).decode()),
    )


def owners() -> st.SearchStrategy[dict[str, Any]]:
    """Headers of an owner that does not exist, on shards that do and do not, or of the wrong kind."""
    return st.fixed_dictionaries(
        {PREFIX + "workflow": st.one_of(st.sampled_from(["none", "x" * 255, ""]), header_values())},
        optional={
            PREFIX + "node": st.one_of(st.sampled_from(["n", "x" * 255]), header_values()),
            PREFIX + "origin": st.one_of(st.sampled_from(["0", "1", "77", "none", "", "-1"]), header_values()),
            PREFIX + "fence": st.one_of(st.integers(-1, 2**53), header_values()),
            PREFIX + "publication": st.one_of(st.integers(-1, 2**53), header_values()),
            PREFIX + "published-at": st.sampled_from([0, 1_767_225_600_000, 2**52]),
        },
    )


def limits() -> st.SearchStrategy[dict[str, Any]]:
    """Headers that ask for more than a capability allows."""
    names = (
        "max-attempts", "timeout-ms", "attempt", "deadline", "start-by", "depth", "redrive", "claim",
        "undecodable",
    )  # fmt: skip
    values = st.one_of(st.sampled_from([1, 2, 1_000, 10_000, 2**53, "1000", "coditect.claim.v1"]), header_values())
    return st.dictionaries(st.sampled_from([PREFIX + name for name in names]), values, max_size=4)


def headers() -> st.SearchStrategy[dict[str, Any]]:
    """Any of ours with any value, and what is known to have hurt."""
    known = st.fixed_dictionaries({}, optional={PREFIX + "errors": histories()})
    strange = strange_messages().map(lambda one: one.headers)
    merged = st.tuples(strange, st.one_of(owners(), st.just({})), limits(), known)
    return merged.map(lambda parts: {name: value for part in parts for name, value in part.items()})


def hostile_messages() -> st.SearchStrategy[Hostile]:
    """Everything together."""
    child = child_task_id(PARENT, "strange.work", dumps(QUESTION), 1)
    guesses = st.sampled_from([child, PARENT, child_task_id(PARENT, "strange.work", dumps(QUESTION), 2), "same"])
    return st.builds(
        Hostile,
        key=st.sampled_from(
            ["strange.work.p0", "strange.work.p1", "strange.work.p2", "strange.work", "no.body.p1", "#"]
        ),
        body=st.one_of(
            st.sampled_from([*BODIES, b'{"say": "forged"}', b'{"say": "fail"}', dumps(QUESTION)]),
            st.binary(max_size=60),
        ),
        headers=headers(),
        message_id=st.one_of(st.none(), guesses, short_text()),
        correlation_id=st.one_of(st.none(), guesses, short_text()),
        reply_to=st.one_of(
            st.none(),
            st.just(ANSWERS),
            st.sampled_from([LEDGER, *OWN_RETURN_ADDRESSES, *SYSTEM_QUEUES, "x" * 255, "answers.nobody"]),
            short_text(),
        ),
        type=st.one_of(st.none(), st.just("coditect.task.v1"), short_text(), st.just("coditect.control.v1")),
        expiration_ms=st.one_of(st.none(), st.sampled_from([0, 1, 10_000])),
    )
