"""The table of the key space is what the layers write, and what a layer may import."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import dispatcher.ledger
from dispatcher.ledger import answers, idempotency, keyspace, outbox, timers, values
from dispatcher.ledger.ownership import incarnation, leases, shards
from dispatcher.store.keys import Space
from dispatcher.store.transaction import Transaction
from tests.unit.layers.scene import Store

_LINE = re.compile(r'├── "(\w+)"|└── "(\w+)"')
_SHAPE = re.compile(r"\(([^()]*)\)\s*→")


def drawn() -> dict[str, set[int]]:
    """How many elements the keys of each space have, by the table; -1 for any number."""
    shapes: dict[str, set[int]] = {}
    name = ""
    for line in (inspect.getdoc(keyspace) or "").splitlines():
        if head := _LINE.search(line):
            name = head[1] or head[2]
        if shape := _SHAPE.search(line):
            elements = [one for one in shape[1].split(",") if one.strip()]
            shapes.setdefault(name, set()).add(-1 if elements == ["*name"] else len(elements))
    return shapes


def spaces() -> dict[str, Space]:
    """The spaces of the module by the name in their keys."""
    found = [value for value in vars(keyspace).values() if isinstance(value, Space) and value.prefix]
    return {keyspace.ROOT.unpack(space.prefix)[0]: space for space in found if space is not keyspace.ROOT}


def everything(tr: Transaction) -> None:
    shards.fix_count(tr)
    incarnation.begin(tr, "s", known=0)
    leases.renew(tr, "a", 1)
    leases.acquire(tr, ("leader", "sweep"), "a")
    timers.put(tr, 0, timers.Timer("w", "n", "start", 1_000))
    outbox.record(tr, 0, outbox.Numbers(1))
    idempotency.claim(tr, "k", "w", now_ms=0)
    answers.put(tr, 0, "i", b"{}", now_ms=0)
    values.put(tr, values.ValueKey("w", "n", "result"), b"v" * 70_000)


def test_the_table_draws_every_space_and_no_other() -> None:
    assert sorted(drawn()) == sorted(spaces())


def test_no_space_lies_within_another() -> None:
    prefixes = [space.prefix for space in spaces().values()]

    assert not [(one, two) for one in prefixes for two in prefixes if one is not two and two.startswith(one)]


def test_keys_have_the_elements_that_the_table_draws(store: Store) -> None:
    store.run(everything)
    written: dict[str, set[int]] = {}
    for key in store.written():
        name, *elements = keyspace.ROOT.unpack(key)
        written.setdefault(name, set()).add(len(elements))

    shapes = drawn()
    assert written.keys() <= shapes.keys()
    assert {name: found for name, found in written.items() if shapes[name] not in ({-1}, found)} == {}


LAYERS = Path(dispatcher.ledger.__file__).parent
FILES = sorted(LAYERS.glob("*.py"))
IN_TRANSACTIONS = [*sorted(LAYERS.rglob("*.py")), LAYERS.parent / "shards" / "batch.py"]
FORBIDDEN = {"asyncio", "datetime", "logging", "os", "random", "secrets", "threading", "time"}
"""What acts, or says something else each time."""
ALLOWED = (
    "__future__",
    "collections",
    "contextlib",
    "dataclasses",
    "enum",
    "hashlib",
    "math",
    "typing",
    "pydantic_core",
    "coditect.errors",
    "coditect.model",
    "coditect.wire",
    "coditect.workflow",
    "dispatcher.ledger",
    "dispatcher.store.errors",
    "dispatcher.store.keys",
    "dispatcher.store.limits",
    "dispatcher.store.port",
    "dispatcher.store.transaction",
)


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_layer_imports_the_store_s_port_and_nothing_that_acts(path: Path) -> None:
    others = {name for name in imported(path) if not any(name == one or name.startswith(f"{one}.") for one in ALLOWED)}

    assert not others


@pytest.mark.parametrize("path", IN_TRANSACTIONS, ids=lambda path: path.stem)
def test_what_runs_in_a_transaction_has_no_clock_no_chance_and_no_log(path: Path) -> None:
    assert not imported(path) & FORBIDDEN
