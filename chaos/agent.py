"""The agent program of a chaos run: `coditect agent run chaos.agent`.

``CHAOS_HISTORY`` names the folder of the run; the agent and its file in it are named by ``CHAOS_NAME``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from chaos.history import HISTORY_VARIABLE, NAME_VARIABLE, SUFFIX, Scribe, Type
from chaos.load.parts.table import PARTS
from chaos.load.work import EffectFolder, working_agent

EFFECTS = "effects"
LIFE_VARIABLE = "CHAOS_LIFE"
"""The environment variable with the agent's name in the history, by which its worker processes name themselves."""
if NAME_VARIABLE in os.environ:
    os.environ.setdefault(LIFE_VARIABLE, f"{os.environ[NAME_VARIABLE]}#{os.getpid()}")


@lru_cache(maxsize=1)
def _scribe() -> Scribe:
    return Scribe(_folder() / f"{os.environ[NAME_VARIABLE]}{SUFFIX}", os.environ[LIFE_VARIABLE])


def _folder() -> Path:
    return Path(os.environ[HISTORY_VARIABLE])


def _note(type_: Type, f: str, key: str = "", **val: Any) -> None:
    val.pop("proc", None)  # one file for each post, whoever holds it
    _scribe().note(type_, f, key, **val)


class _Effects:
    """The side effects of tasks as files in the run's folder, whose path each call reads from the environment."""

    def make(self, key: str) -> str:
        return EffectFolder(_folder() / EFFECTS).make(key)

    def all(self) -> Iterator[tuple[str, str]]:
        return EffectFolder(_folder() / EFFECTS).all()


worker = working_agent(os.environ.get(NAME_VARIABLE, "chaos"), note=_note, effects=_Effects())
for part in PARTS.values():
    part.offer(worker, _note)
