"""Mutants of shards, their leases and desks, and of what brings commands to them."""

from __future__ import annotations

from dispatcher.chaos.mutants.mutant import Mutant

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "ack_before_commit",
        "dispatcher.arrivals",
        "        settle = AckedTogether(delivery, len(results))\n",
        "        delivery.ack()\n        settle = AckedTogether(delivery, len(results))\n",
        "results are acknowledged before they are recorded",
        ("recorded, then acked",),
    ),
)
