"""Mutants of the ledger: of what records results, claims nodes, and lets workflows go on."""

from __future__ import annotations

from dispatcher.chaos.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "skip_fence",
        "dispatcher.collect",
        "    if row.state not in UNDER_WAY or not _is_current(row, command):\n",
        "    if row.state not in UNDER_WAY:\n",
        "results are recorded whatever their fence",
        ("no stale write",),
    ),
    Mutant(
        "drop_outbox_row",
        "dispatcher.layers.ledger.claiming",
        "    outbox.put(book.tr, book.shard, outbox.Row(row.publication, place.workflow, place.node, row.fence))\n",
        "",
        "a node is published without a row in the outbox",
        ("outbox kept",),
    ),
    Mutant(
        "reuse_publication",
        "dispatcher.layers.ledger.book",
        "        self._last_number += 1\n",
        "        self._last_number = max(1, self._last_number)\n",
        "a publication number is given twice",
        ("publications unique",),
    ),
)
