"""The check that a message thread keeps each message once, in one order, and that a listener gets all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from chaos.checks.check import CheckResult
from chaos.checks.history_index import HistoryIndex, Operation


def threads_kept(index: HistoryIndex) -> CheckResult:
    """Check the stored messages of each message thread against what was said in it and what its listener heard.

    The numbers of a thread's messages have no gap; a message whose sender was answered is there once, behind all that
    were answered before it was said. A loop of a listener skips none, and what it has noted as read it has been given.
    """
    said, heard = _of_threads(index, "say"), _of_threads(index, "hear")
    checked, violations = 0, list[str]()
    for talk in index.of("talk"):
        kept = {int(one.val["number"]): str(one.val["text"]) for one in index.about("message", talk.key)}
        checked += len(kept)
        wrong = (
            *_misnumbered(kept),
            *_unkept(kept, said.get(talk.key, ())),
            *_disordered(kept, said.get(talk.key, ())),
            *_unheard(index, talk, kept, heard.get(talk.key, ())),
        )
        violations += [f"{talk.key} {told}" for told in wrong]
        if not talk.happened:
            violations.append(f"{talk.key} was not closed")
    return CheckResult("threads kept", "each message once, in one order", checked, tuple(violations))


def _of_threads(index: HistoryIndex, f: str) -> dict[str, list[Operation]]:
    found: dict[str, list[Operation]] = {}
    for one in index.of(f):
        found.setdefault(one.val["thread"], []).append(one)
    return found


def _misnumbered(kept: Mapping[int, str]) -> Iterator[str]:
    if sorted(kept) != list(range(1, len(kept) + 1)):
        yield f"has messages with the numbers {sorted(kept)}"
    for text, many in Counter(kept.values()).items():
        if many > 1:
            yield f"has {text} {many} times"


def _unkept(kept: Mapping[int, str], said: Sequence[Operation]) -> Iterator[str]:
    known = {one.val["text"] for one in said}
    for one in said:
        if one.happened and kept.get(one.val["number"]) != one.val["text"]:
            yield f"has {kept.get(one.val['number'])} as {one.val['number']}, and {one.val['text']} was to be it"
    for text in kept.values():
        if text not in known:
            yield f"has {text}, which nobody said"


def _disordered(kept: Mapping[int, str], said: Sequence[Operation]) -> Iterator[str]:
    """Yield an error where a thread has message A before message B, although B was confirmed before A was sent."""
    first, answered = dict[str, int](), dict[str, float]()
    for one in said:
        first.setdefault(one.val["text"], one.first)
        if one.happened:
            answered[one.val["text"]] = min(one.last, answered.get(one.val["text"], one.last))
    texts = [kept[number] for number in sorted(kept)]
    for place, later in enumerate(texts):
        for text in texts[place + 1 :]:
            if answered.get(text, float("inf")) < first.get(later, 0):
                yield f"has {later} before {text}, which was answered before {later} was said"


def _unheard(
    index: HistoryIndex, talk: Operation, kept: Mapping[int, str], heard: Sequence[Operation]
) -> Iterator[str]:
    loops: dict[str, list[Operation]] = {}
    for one in heard:
        loops.setdefault(one.key, []).append(one)
        if kept.get(one.val["number"]) != one.val["text"]:
            yield f"told a listener {one.val['text']} as {one.val['number']}"
    for key, told in loops.items():
        for before, after in pairwise(told):
            if after.val["number"] != before.val["number"] + 1:
                yield f"told {key} {after.val['number']} after {before.val['number']}"
    numbers = {one.val["number"] for one in heard}
    listener = talk.val["listener"]
    read = max((one.val["number"] for one in index.about("receipt", f"{talk.key}/{listener}")), default=0)
    until = len(kept) if talk.happened else read
    if missing := [number for number in range(1, until + 1) if number not in numbers]:
        yield f"is read by {listener} up to {read}, who was not told of {missing}"
