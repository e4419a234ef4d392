"""Drawing of charts as SVG with matplotlib, which is in the group `bench` only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.charts import Bars, Chart, Lines, Target

try:
    import matplotlib
    import matplotlib.figure
    import matplotlib.ticker
except ImportError:  # the group `bench` is not installed
    matplotlib = None

COLOURS = ("#2a6fbb", "#7fb2e5", "#8c8c8c", "#c98a2b", "#6b9b4b", "#a35d9b")
TARGET_COLOUR = "#c0392b"
INCHES = (7.5, 4.0)
BAR_SHARE = 0.8
PAPER = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0}
"""The background of words that may stand on bars."""
STYLE = {
    "font.size": 9.0,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "svg.hashsalt": "coditect",
}


def can_draw() -> bool:
    """Return whether matplotlib is installed, without which no chart is drawn."""
    return matplotlib is not None


def draw(charts: Sequence[Chart], folder: Path) -> list[Path]:
    """Write `<name>.svg` for each chart, replacing earlier files; the same chart gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with matplotlib.rc_context(STYLE):
        for chart in charts:
            file = folder / f"{chart.name}.svg"
            _drawn(chart).savefig(file, format="svg", metadata={"Date": None})
            files.append(file)
    return files


def _drawn(chart: Chart) -> Any:
    sheet = matplotlib.figure.Figure(figsize=INCHES, layout="constrained")
    axes = sheet.add_subplot()
    axes.set_title(chart.title)
    match chart:
        case Bars():
            _bars(axes, chart)
        case Lines():
            _lines(axes, chart)
    for target in chart.targets:
        _target(axes, target)
    axes.set_ylim(bottom=0)
    if len(chart.values if isinstance(chart, Bars) else chart.series) > 1:
        axes.legend()
    return sheet


def _bars(axes: Any, chart: Bars) -> None:
    width = BAR_SHARE / len(chart.values)
    for number, (series, values) in enumerate(chart.values.items()):
        offset = (number - (len(chart.values) - 1) / 2) * width
        places = [category + offset for category in range(len(chart.categories))]
        bars = axes.bar(places, values, width * 0.92, label=series, color=COLOURS[number % len(COLOURS)])
        axes.bar_label(bars, fmt="{:,.4g}", fontsize=8, padding=2)
    axes.set_xticks(range(len(chart.categories)), chart.categories)
    axes.grid(visible=False, axis="x")
    axes.set_ylabel(chart.axis)
    axes.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.6g}"))


def _lines(axes: Any, chart: Lines) -> None:
    for number, (series, points) in enumerate(chart.series.items()):
        across, up = zip(*points, strict=True)
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(across, up, label=series, color=colour, marker="o" if chart.marked else None, markersize=4)
    if chart.level_logarithmic:
        axes.set_xscale("log")
        if chart.marked:
            axes.set_xticks(sorted({across for points in chart.series.values() for across, _ in points}))
            axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        else:
            axes.xaxis.set_minor_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.10g}"))
    axes.set_xlabel(chart.level_axis)
    axes.set_ylabel(chart.upright_axis)
    axes.xaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.10g}"))
    axes.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.6g}"))


def _target(axes: Any, target: Target) -> None:
    style = {"color": TARGET_COLOUR, "linestyle": "--", "linewidth": 1.0}
    words = {"color": TARGET_COLOUR, "fontsize": 8, "bbox": PAPER, "zorder": 4}
    if target.upright:
        axes.axvline(target.value, **style)
        place = axes.get_xaxis_transform()
        axes.text(target.value, 0.02, f" {target.label}", transform=place, rotation=90, va="bottom", **words)
    else:
        axes.axhline(target.value, **style)
        place = axes.get_yaxis_transform()
        axes.text(0.99, target.value, target.label, transform=place, ha="right", va="bottom", **words)
