"""What a plot shows, as values: made by the parts, drawn by `plots`. The title says what is seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Target:
    """A line to meet: at this value of the upright axis, or of the level one."""

    value: float
    label: str
    upright: bool = False
    """The line itself stands upright: the value is one of the level axis."""


@dataclass(frozen=True, slots=True)
class Bars:
    """One group of bars for each category, one bar of each series in it. `values[series][category]`."""

    name: str
    """Of the file."""
    title: str
    axis: str
    """What is measured, with its unit."""
    categories: Sequence[str]
    values: Mapping[str, Sequence[float]]
    targets: Sequence[Target] = ()


@dataclass(frozen=True, slots=True)
class Lines:
    """One line of each series."""

    name: str
    title: str
    level_axis: str
    upright_axis: str
    series: Mapping[str, Sequence[Point]]
    targets: Sequence[Target] = ()
    level_logarithmic: bool = False
    """Powers of ten; every measured value of the level axis is marked on it."""
    marked: bool = True
    """Whether the points themselves are drawn."""


Chart = Bars | Lines


def times(ratio: float) -> str:
    """A ratio as a title says it."""
    return f"{ratio:.2f} x" if ratio < 10 else f"{ratio:.0f} x"
