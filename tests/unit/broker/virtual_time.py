"""Runs a test of the in-memory broker in the virtual time of a fleet without agents."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from coditect.testing import TestFleet

P = ParamSpec("P")
T = TypeVar("T")


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Runs an async test to its end without waiting for real time."""

    async def within_a_fleet(*args: P.args, **kwargs: P.kwargs) -> T:
        async with TestFleet():
            return await test(*args, **kwargs)

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return asyncio.run(within_a_fleet(*args, **kwargs))

    return run
