"""`coditect doctor --rebuild`: every shard is asked once, and what was made again is told by kind."""

from __future__ import annotations

from coditect.wire.control import Verb
from tests.control_plane import SHARDS
from tests.unit.cli.scene import Terminal


def test_every_shard_is_rebuilt_and_what_it_made_is_summed_up(served: Terminal) -> None:
    document = served.run("doctor", "--rebuild", "--output", "json")

    counts = {"queues": 12, "published": 6, "working": 4, "workflows": 8, "jobs": 0}
    assert document.json == {"shards": SHARDS, **counts, "compared": True}
    asked = [body for verb, body in served.connections.plane.asked if verb is Verb.REBUILD]
    assert [body["shard"] for body in asked] == list(range(SHARDS))
    assert len({body["occasion"] for body in asked}) == 1


def test_table_says_what_each_kind_is(served: Terminal) -> None:
    told = served.run("doctor", "--rebuild")

    assert told.code == 0
    assert "published again" in told.out
    assert "4 shards" in told.err


def test_counts_that_may_be_too_small_are_told_as_such(served: Terminal) -> None:
    served.connections.plane.compared = False

    table, document = served.run("doctor", "--rebuild"), served.run("doctor", "--rebuild", "--output", "json")

    assert "more of its jobs may have been made" in table.err
    assert document.json["compared"] is False


def test_without_a_control_plane_it_says_what_to_start(terminal: Terminal) -> None:
    told = terminal.run("doctor", "--rebuild")

    assert told.code == 1
    assert "coditect dispatcher run" in told.err
