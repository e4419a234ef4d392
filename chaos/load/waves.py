"""The tasks that a chaos run submits in waves: their inputs, and the numbers of locks and keys that they share."""

from __future__ import annotations

from typing import Any

PARENT = {"milliseconds": 200, "child": 2_000}
"""The input of a task that awaits a child task and then works on."""
RESOURCES = 3
"""The number of different locks that the tasks of a wave take, and of different keys that they have."""
KEY_SECONDS = 90.0
"""How much longer a task with a key may take: the key of a dead holder that is not evicted is free after a minute."""
UNDER_LOCK = {"milliseconds": 150}
"""The input of a task that works under a lock."""
URGENT = 8
"""The number of P0 tasks that the load submits while the tasks of a wave resume after their children."""
HANDED: dict[str, Any] = {"milliseconds": 150, "hand": True}
"""The input of a task that is offered to other agents before it is worked on."""
