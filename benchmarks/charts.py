"""The contents of plots, as values: made by the parts, drawn by `plots`. A chart's title states its finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Target:
    """A target in a chart, drawn as a line at a value of the upright axis, or of the level axis."""

    value: float
    label: str
    upright: bool = False
    """Whether the line itself stands upright: its value is then one of the level axis."""


@dataclass(frozen=True, slots=True)
class Bars:
    """A bar chart: one group of bars for each category, with one bar of each series; `values[series][category]`."""

    name: str
    """The name of the file."""
    title: str
    axis: str
    """The measured quantity, with its unit."""
    categories: Sequence[str]
    values: Mapping[str, Sequence[float]]
    targets: Sequence[Target] = ()


@dataclass(frozen=True, slots=True)
class Lines:
    """A line chart: one line for each series."""

    name: str
    title: str
    level_axis: str
    upright_axis: str
    series: Mapping[str, Sequence[Point]]
    targets: Sequence[Target] = ()
    level_logarithmic: bool = False
    """Whether the level axis has a logarithmic scale, by powers of ten; every measured value is then marked on it."""
    marked: bool = True
    """Whether the points themselves are drawn."""


Chart = Bars | Lines


def times(ratio: float) -> str:
    """Return a ratio as text for a title, e.g. `1.25 x`."""
    return f"{ratio:.2f} x" if ratio < 10 else f"{ratio:.0f} x"
