"""The table of a load's optional parts, by name."""

from __future__ import annotations

from collections.abc import Mapping

from chaos.load.parts import (
    contests,
    patterns,
    poison,
    rates,
    restores,
    streams,
    sub_workflows,
    threads,
    triggers,
    votes,
)
from chaos.load.parts.part import LoadPart

_ALL = (
    contests.PART,
    threads.PART,
    votes.PART,
    triggers.PART,
    sub_workflows.PART,
    rates.PART,
    streams.PART,
    restores.PART,
    patterns.PART,
    poison.SUICIDES,
    poison.SWALLOWED,
)
PARTS: Mapping[str, LoadPart] = {one.name: one for one in _ALL}
