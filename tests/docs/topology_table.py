"""The tables of docs/topology.md, made from the values of `coditect.broker.topology`.

``python -m tests.docs.topology_table`` writes them anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from coditect.broker.topology import Topology, topology_by_declarer
from coditect.model.retry import RETRY_DELAYS_MS
from tests.servers import ROOT

PAGE = ROOT / "docs" / "topology.md"
BEGIN = "<!-- made by tests/docs/topology_table.py: begin -->"
END = "<!-- made by tests/docs/topology_table.py: end -->"

SHARD = 1_000_033
SLOTS = 1_000_003
"""Prime and unlikely, to be found again in an argument."""


def parts() -> dict[str, Topology]:
    """The topology by who declares it."""
    return topology_by_declarer(slots=SLOTS, shard=SHARD)


def tables() -> str:
    """Exchanges, queues and bindings as Markdown."""
    return "\n\n".join(
        [
            _table("Exchanges", ("exchange", "type", "alternate exchange", "declared by"), _exchanges()),
            _table("Queues", ("queue", "type", "arguments", "declared by"), _queues()),
            _table("Bindings", ("exchange", "routing key", "queue"), _bindings()),
        ]
    )


def _exchanges() -> Iterable[tuple[str, ...]]:
    rows = [
        (_code(_name(one.name)), one.type.value, _code(one.alternate or ""), who)
        for who, part in parts().items()
        for one in part.exchanges
    ]
    return dict.fromkeys(rows)


def _queues() -> Iterable[tuple[str, ...]]:
    rows = []
    for who, part in parts().items():
        for one in part.queues:
            arguments = [
                f"`{name}={_value(name, value, one.name)}`"
                for name, value in one.arguments.items()
                if name != "x-queue-type"
            ]
            rows.append((_code(_name(one.name)), one.type.value, "<br>".join(arguments), who))
    return dict.fromkeys(rows)


def _bindings() -> Iterable[tuple[str, ...]]:
    rows = [
        (_code(_name(one.exchange)), _code(_name(one.key)), _code(_name(one.queue)))
        for part in parts().values()
        for one in part.bindings
    ]
    return dict.fromkeys(rows)


def _name(name: str) -> str:
    """One name for all retry-delay queues."""
    return re.sub(r"retry\.after\.\d+$", "retry.after.<delay>", name.replace(str(SHARD), "<shard>"))


def _value(name: str, value: str | int, queue: str) -> str:
    if value == 2 * SLOTS:
        return "twice the slots"
    if name == "x-message-ttl" and queue.startswith("retry.after."):
        return "<delay>"
    return _name(str(value))


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _table(title: str, head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    written_rows = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([f"### {title}", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head), *written_rows])


def retry_delays() -> str:
    """The delays of the retry-delay queues, in words."""
    return ", ".join(f"{ms} ms" if ms < 1000 else f"{ms // 1000} s" for ms in RETRY_DELAYS_MS)


def written(page: str) -> str:
    """The page with its tables made again."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
