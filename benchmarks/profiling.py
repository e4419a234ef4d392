"""Where the time goes, by cProfile: it slows the program two to three times, so look at shares only."""

from __future__ import annotations

import cProfile
import io
import pstats
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LINES = 15


@contextmanager
def profiled(file: str | None) -> Iterator[None]:
    """Profiles the block and writes the statistics to the file; does nothing without one."""
    if file is None:
        yield
        return
    profile = cProfile.Profile()
    profile.enable()
    try:
        yield
    finally:
        profile.disable()
        profile.dump_stats(file)


def summary(file: Path) -> str:
    """The functions with the most own and the most cumulative time; file names without their folders."""
    text = io.StringIO()
    statistics = pstats.Stats(str(file), stream=text).strip_dirs()
    for order in (pstats.SortKey.TIME, pstats.SortKey.CUMULATIVE):
        statistics.sort_stats(order).print_stats(LINES)
    return text.getvalue()
