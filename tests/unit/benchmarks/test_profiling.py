from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.profiling import ELSEWHERE, KERNEL, Frame, read_shares, room, shares, shares_as_markdown

RUN = Frame("run", "/lib/python3.11/asyncio/runners.py")
OURS = Frame("_start", "/src/coditect/coditect/agent/runtime.py")
PUBLISH = Frame("publish", "/src/coditect/broker/rabbitmq/publishing/publisher.py")
STANDARD = Frame("dumps", "/lib/python3.11/json/__init__.py")
SEND = Frame("__libc_send", "libc.so.6")
UNKNOWN = Frame("main", "python3.11")


@pytest.mark.parametrize(
    ("stack", "name"),
    [
        ([RUN, OURS, PUBLISH], "coditect.broker.rabbitmq.publishing.publisher"),
        ([RUN, OURS, STANDARD], "coditect.agent.runtime"),
        ([RUN, OURS, SEND], KERNEL),
        ([UNKNOWN, RUN], "asyncio"),
        ([UNKNOWN], ELSEWHERE),
        ([], ELSEWHERE),
    ],
)
def test_sample_belongs_to_the_innermost_room(stack: list[Frame], name: str) -> None:
    assert room(stack) == name


@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from([RUN, OURS, PUBLISH, STANDARD, SEND, UNKNOWN])), st.floats(0.001, 10)),
        min_size=1,
    )
)
def test_shares_add_up_and_the_largest_is_first(samples: list[tuple[list[Frame], float]]) -> None:
    found = list(shares(samples).values())

    assert sum(found) == pytest.approx(100)
    assert found == sorted(found, reverse=True)


def test_speedscope_file_is_read_with_every_thread(tmp_path: Path) -> None:
    document = {
        "shared": {"frames": [{"name": "run", "file": RUN.file}, {"name": "publish", "file": PUBLISH.file}]},
        "profiles": [
            {"samples": [[0, 1], [0]], "weights": [0.3, 0.1]},
            {"samples": [[0, 1]], "weights": [0.6]},
        ],
    }
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(document))

    assert read_shares(file) == pytest.approx({"coditect.broker.rabbitmq.publishing.publisher": 90.0, "asyncio": 10.0})


def test_table_has_a_row_for_every_room_of_any_process() -> None:
    text = shares_as_markdown({"client": {"aiormq": 60.0, "redis": 0.9}, "agent": {"pydantic": 99.1, "redis": 0.9}})

    assert text.splitlines()[2:] == [
        "| pydantic                 | 0.0 %  | 99.1 % |",
        "| aiormq                   | 60.0 % | 0.0 %  |",
        "| the rest, each below 1 % | 0.9 %  | 0.9 %  |",
    ]
