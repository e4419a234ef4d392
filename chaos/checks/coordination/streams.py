"""The check that a reader gets the parts of a result in order, each once, and is informed when they begin again."""

from __future__ import annotations

from collections.abc import Iterator

from chaos.checks.check import CheckResult
from chaos.checks.history_index import HistoryIndex, Operation


def parts_in_order(index: HistoryIndex) -> CheckResult:
    """Check that a reader gets an execution's parts in order, without gaps, and that a stream that ended is complete.

    After the reader was informed that the stream restarted, the first part of another execution follows.
    """
    checked, violations = 0, list[str]()
    for stream in index.of("stream"):
        told = sorted((*index.about("given", stream.key), *index.about("restarted", stream.key)), key=_place)
        checked += len(told)
        violations += (f"{stream.key} {wrong}" for wrong in _wrong(stream, told))
    return CheckResult("parts in order", "each once, or begun again", checked, tuple(violations))


def _place(one: Operation) -> int:
    return one.first


def _wrong(stream: Operation, told: list[Operation]) -> Iterator[str]:
    execution, wanted = "", 0
    for one in told:
        if one.f == "restarted":
            execution, wanted = "", 0
            continue
        of, _, number = str(one.val["part"]).rpartition("/")
        if int(number) != wanted or execution not in ("", of):
            yield f"gave {of}/{number}, and {execution or 'its'}/{wanted} was the next part"
        execution, wanted = of, int(number) + 1
    if stream.happened and wanted != stream.val["parts"]:
        yield f"ended after {wanted} of {stream.val['parts']} parts"
