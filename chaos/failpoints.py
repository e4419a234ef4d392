"""Failpoints: named places in a dispatcher at which a test may kill, stop or fail the process.

The wrappers of the dispatcher's ports call `failpoints.reached("commit.after")` before or after a call. Nothing happens
unless the program was started with orders::

    python -m chaos.dispatcher commit.after:kill@3              the third time, as kill -9 does
    python -m chaos.dispatcher commit.before:stop ack.before:raise@2

The idea is FreeBSD's fail(9), with fewer words.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from enum import StrEnum

from coditect.errors import CoditectError, SetupError

log = logging.getLogger(__name__)

_ORDER = re.compile(r"(?P<point>[a-z_.]+):(?P<act>[a-z]+)(@(?P<at>[1-9][0-9]{0,8}))?")


class Act(StrEnum):
    """The action that a failpoint takes: kill the process, stop the process, or raise an error."""

    KILL = "kill"
    """The process is killed, as by SIGKILL."""
    STOP = "stop"
    """The process is stopped, as by SIGSTOP, until a SIGCONT."""
    RAISE = "raise"
    """The failpoint raises FailpointReached."""


class FailpointReached(CoditectError):
    """The error that a failpoint raises because a test ordered an error at that point."""


@dataclass(frozen=True, slots=True)
class Failpoint:
    """An order for one failpoint: which point, which action, and at which visit of the point."""

    point: str
    act: Act
    at: int = 1
    """The visit of the point at which the action happens, counted from 1; other visits have no effect."""


def strike(order: Failpoint) -> None:
    """Carry out a failpoint order on the calling process: kill, stop or raise.

    A warning is logged first, so that the cause of a dead or stopped process can be found.

    Raises:
        FailpointReached: when the order is to raise.
    """
    log.warning("A failpoint is reached", extra={"point": order.point, "act": order.act.value, "at": order.at})
    match order.act:
        case Act.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case Act.STOP:
            # to this very thread: sent to the process it may be another that takes it, and this one runs on meanwhile
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
        case Act.RAISE:
            raise FailpointReached("A failpoint was ordered to raise", point=order.point, at=order.at)


class Failpoints:
    """The failpoint orders of one process; without orders a point costs one call and has no effect."""

    __slots__ = ("_counts", "_orders", "_strike")

    def __init__(self, orders: Iterable[Failpoint] = (), *, strike: Callable[[Failpoint], None] = strike) -> None:
        """Set the orders of the process; `strike` carries an order out, which a simulation replaces."""
        self._orders = tuple(orders)
        self._strike = strike
        self._counts: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._orders)

    def reached(self, point: str) -> None:
        """Count a visit of the named point, and carry out the orders for just that visit; callable from any thread.

        Raises:
            FailpointReached: when an order for that visit is to raise.
        """
        if not self._orders:
            return
        count = self._counts[point] = self._counts.get(point, 0) + 1
        for order in self._orders:
            if order.point == point and order.at == count:
                self._strike(order)


def read_orders(texts: Iterable[str], known: Collection[str]) -> tuple[Failpoint, ...]:
    """Parse the texts of failpoint orders.

    Raises:
        SetupError: when a text is not an order, or names a point that is not known.
    """
    return tuple(_read_order(text, known) for text in texts)


def _read_order(text: str, known: Collection[str]) -> Failpoint:
    found = _ORDER.fullmatch(text)
    if found is None or found["act"] not in tuple(Act):
        raise SetupError(
            "This is no order for a failpoint",
            given=text[:80],
            fix="write point:kill, point:stop or point:raise, and @3 behind it for the third time",
        )
    if found["point"] not in known:
        raise SetupError("A dispatcher has no such failpoint", given=found["point"], known=tuple(sorted(known)))
    return Failpoint(found["point"], Act(found["act"]), int(found["at"] or 1))
