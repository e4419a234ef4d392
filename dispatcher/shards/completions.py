"""The callbacks of commands to a shard worker, which ack, answer or requeue the message that brought the command."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from coditect.errors import CoditectError
from dispatcher.store.errors import StoreUnavailable

Settle = Callable[[Any], None]
"""A function to call once with a command's answer after the commit, the error that refused it, or `Undone`."""


class Undone(StoreUnavailable):
    """The answer to a command that was not applied, as this dispatcher left the shard; its message may come again.

    Every other error refuses the command. So whoever rejects a message after an error looks for this one first.
    """

    def __init__(self) -> None:
        super().__init__("The shard went to another dispatcher; ask again")


def ignore(answer: Any) -> None:
    """Do nothing with the answer to a command that no caller waits for."""


def pass_on(waiting: asyncio.Future[Any], answer: Any) -> None:
    """Set a waiting caller's future to the answer to its command, or to the error."""
    if waiting.done():
        return
    if isinstance(answer, CoditectError):
        waiting.set_exception(answer)
    else:
        waiting.set_result(answer)
