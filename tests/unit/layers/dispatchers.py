"""Dispatchers that do nothing but share shards, on one store, each with its own clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dispatcher.ledger.ownership import leases, shards
from dispatcher.ledger.ownership.leases import Lease, Pulse
from tests.unit.layers.scene import End, Store


@dataclass(slots=True)
class Dispatcher:
    name: str
    clock_ms: int
    """What its clock shows more than the others'."""
    next_ms: int
    beat: int = 0
    paused: bool = False
    pulses: Mapping[str, Pulse] = field(default_factory=dict)


class Fleet:
    def __init__(self, count: int) -> None:
        self.store = Store()
        self.count = count
        self.now_ms = 0
        self.running: dict[str, Dispatcher] = {}

    def join(self, name: str) -> None:
        self.running[name] = Dispatcher(name, clock_ms=len(self.running) * 1_000_000, next_ms=self.now_ms)

    def leave(self, name: str) -> None:
        del self.running[name]
        self.store.run(lambda tr: shards.leave(tr, name))

    def kill(self, name: str) -> None:
        del self.running[name]

    def pause(self, name: str) -> None:
        self.running[name].paused = True

    def go_on(self, name: str) -> None:
        self.running[name].paused = False
        self.running[name].next_ms = self.now_ms

    def pass_time(self, milliseconds: int) -> None:
        end_ms = self.now_ms + milliseconds
        while awake := [one for one in self.running.values() if not one.paused and one.next_ms <= end_ms]:
            first = min(awake, key=lambda one: one.next_ms)
            self.now_ms = first.next_ms
            self.step(first.name)
        self.now_ms = end_ms

    def step(self, name: str, end: End = End.COMMITTED) -> None:
        one = self.running[name]
        one.beat += 1
        one.next_ms = self.now_ms + shards.STEP_MS
        step = self.store.run(
            lambda tr: shards.step(tr, name, one.beat, count=self.count, pulses=one.pulses.values()), end
        )
        one.pulses = leases.look(one.pulses, step.beats, now_ms=self.now_ms + one.clock_ms)

    def leases(self, name: str) -> list[Lease]:
        return [
            lease for lease in self.store.run(lambda tr: leases.read_all(tr, shards.SHARD_LEASE)) if lease.owner == name
        ]

    def shares(self) -> dict[str, int]:
        """How many shards each owner has that may work; nobody else's."""
        alive = self.store.run(leases.beats)
        owners = list(self.store.run(lambda tr: shards.owners(tr, self.count)).values())
        return {name: owners.count(name) for name in sorted(set(owners) & alive.keys())}
