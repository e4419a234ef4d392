"""The limits after which a handler's process is replaced by a new one, between two tasks."""

from __future__ import annotations

import re
from dataclasses import dataclass

from coditect.model import arguments

LEAST_BYTES = 1_000_000
MOST_TASKS = 1_000_000_000
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(kB|MB|GB|KiB|MiB|GiB)")
_UNIT_BYTES = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """The limits of a handler's process: how many tasks it runs, and its memory in bytes after each; None: no limit."""

    max_tasks: int | None = None
    max_bytes: int | None = None

    def last(self, tasks: int) -> bool:
        """Tell whether the next task is the last one of a process that has already run `tasks` of them."""
        return self.max_tasks is not None and tasks + 1 >= self.max_tasks

    def over(self, tasks: int, resident_bytes: int) -> bool:
        """Tell whether a process has run as many tasks as it may, or holds more memory than it may."""
        return (self.max_tasks is not None and tasks >= self.max_tasks) or (
            self.max_bytes is not None and resident_bytes > self.max_bytes
        )


def process_limits(max_tasks: int | None, max_memory: str | int | None, *, process: bool) -> ProcessLimits | None:
    """Return the checked limits of a capability's processes; None without any. `max_memory`: bytes, or as "512MB".

    Raises:
        InputError: when a value is outside its range, or the handler does not run in a process of its own.
    """
    for name, given in (("max_tasks_per_process", max_tasks), ("max_memory", max_memory)):
        if given is not None and not process:
            arguments.refuse(name, "Only a handler in a process of its own has this limit", given, "process=True")
    if max_tasks is None and max_memory is None:
        return None
    tasks = None if max_tasks is None else arguments.whole("max_tasks_per_process", max_tasks, 1, MOST_TASKS)
    return ProcessLimits(tasks, None if max_memory is None else _bytes(max_memory))


def _bytes(given: str | int) -> int:
    match = _SIZE.fullmatch(given.strip()) if isinstance(given, str) else None
    size = round(float(match[1]) * _UNIT_BYTES[match[2]]) if match is not None else given
    if not isinstance(size, int) or isinstance(size, bool) or size < LEAST_BYTES:
        arguments.refuse("max_memory", "A memory is at least 1MB", given, 'such as "512MB" or "1GiB"')
    return size
