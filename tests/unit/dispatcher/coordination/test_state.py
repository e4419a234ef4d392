"""Shared state, asked for request by request."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from coditect.errors import InputError, InvalidTask, NotFound, VersionConflict
from coditect.wire.control import Verb, workflow_space
from dispatcher.coordination import state
from dispatcher.coordination.state import merged
from dispatcher.ledger.commands import Claimed
from dispatcher.ledger.effects import NodeKey
from dispatcher.ledger.keyspace import SPACE_VERSIONS, SPACES, VALUES
from dispatcher.ledger.workflows import remove
from dispatcher.ledger.workflows.checkpoints.spaces import VERSIONS_KEPT
from tests.unit.dispatcher.lone_ledger import Ledger

PLACE = {"space": workflow_space("w"), "key": "k"}


@pytest.fixture
async def started(ledger: Ledger) -> Ledger:
    await ledger.start_one()
    return ledger


async def put(ledger: Ledger, value: Any, **more: Any) -> int:
    return int((await ledger.ask(Verb.STATE_PUT, PLACE | {"value": value} | more))["version"])


async def get(ledger: Ledger) -> Any:
    return await ledger.database.read(partial(state.get, body=PLACE))


async def test_write_of_a_former_attempt_is_refused(started: Ledger) -> None:
    node = await started.node("one")
    by = {"workflow": "w", "node": "one", "fence": node.fence}
    assert await put(started, "in time", by=by) == 1
    await started.batch(Claimed(NodeKey("w", "one"), node.publication, "another agent"))

    with pytest.raises(InputError, match="not the present one"):
        await put(started, "too late", by=by)
    with pytest.raises(InputError, match="not the present one"):
        await put(started, "of no node", by=by | {"node": "unknown"})

    assert (await get(started))["value"] == "in time"


async def test_requests_that_cannot_be_understood_are_refused_and_change_nothing(started: Ledger) -> None:
    for wrong in ({"key": "k" * 501}, {"space": ""}, {"if_version": -1}, {"if_version": True}, {"by": "me"}):
        with pytest.raises(InvalidTask):
            await put(started, 1, **wrong)
    with pytest.raises(NotFound):
        await put(started, 1, space=workflow_space("unknown"))
    with pytest.raises(InputError):
        await put(started, "x" * (1024 * 1024))

    assert (await get(started))["version"] == 0


async def test_keys_come_in_pages_without_the_deleted_ones(started: Ledger) -> None:
    for name in ("a", "b", "c", "d"):
        await put(started, name, key=name, if_version=0)
    with pytest.raises(VersionConflict):
        await put(started, "a", key="a", if_version=0)
    await started.ask(Verb.STATE_PUT, PLACE | {"key": "b", "delete": True})
    pages = await started.pages(state.list_keys, space=PLACE["space"], limit=2)

    assert [row["key"] for page in pages for row in page["keys"]] == ["a", "c", "d"]


async def test_old_versions_and_a_removed_workflow_leave_nothing(started: Ledger) -> None:
    for number in range(VERSIONS_KEPT + 5):
        await put(started, "x" * 200_000, key="large")
        await put(started, number)
    await started.ask(Verb.CANCEL, {"workflow": "w", "reason": "done"})

    def rows(space: Any) -> Any:
        return started.rows(space, PLACE["space"])

    assert len(await rows(SPACE_VERSIONS)) == 2 * VERSIONS_KEPT
    assert len(await rows(VALUES)) == VERSIONS_KEPT * (1 + 1 + 3), "each of the large ones has a head and three pieces"

    later = 10**15
    assert await started.database.run(lambda tr: remove.condemn(tr, "w", before_ms=later))
    while await started.database.run(lambda tr: remove.take_apart(tr, "w", before_ms=later)):
        pass
    assert [await rows(space) for space in (SPACES, SPACE_VERSIONS, VALUES)] == [[], [], []]


@pytest.mark.parametrize(
    ("value", "patch", "after"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "foo"}, None, None),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch_does_as_the_examples_of_its_rfc(value: Any, patch: Any, after: Any) -> None:
    assert merged(value, patch) == after
