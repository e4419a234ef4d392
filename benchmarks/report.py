"""The report: a Markdown table for people, JSON for programs. Pure, but for `write`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.figures import rounded
from benchmarks.verdict import Figure, Findings, Verdict

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """One run: when (UTC, `YYYYMMDDTHHMMSSZ`), by which command, on what, and what was found."""

    time: str
    command: str
    machine: Mapping[str, str]
    findings: Sequence[Findings]

    @property
    def ok(self) -> bool:
        """Whether every part was measured and every target is met."""
        return all(found.complete and all(verdict.ok for verdict in found.verdicts) for found in self.findings)


def as_json(report: Report) -> dict[str, object]:
    """The whole report as JSON can say it."""
    return {
        "time": report.time,
        "command": report.command,
        "machine": dict(report.machine),
        "ok": report.ok,
        "parts": {
            found.part: {
                "verdicts": [asdict(verdict) | {"ok": verdict.ok} for verdict in found.verdicts],
                "figures": [asdict(figure) for figure in found.figures],
                "notes": list(found.notes),
                "raw": found.raw,
            }
            for found in report.findings
        },
    }


def as_markdown(report: Report) -> str:
    """The report as Markdown that can be read as it stands."""
    machine = "\n".join(f"- {name}: {value}" for name, value in report.machine.items())
    parts = "\n".join(findings_as_markdown(found) for found in report.findings)
    return f"# Benchmarks, {report.time}\n\n- command: `{report.command}`\n{machine}\n\n{parts}"


def findings_as_markdown(found: Findings) -> str:
    """The targets, the other figures and the notes of one part."""
    blocks = [f"## {found.part}\n"]
    if found.verdicts:
        blocks.append(table(("target", "wanted", "measured", ""), [_verdict_row(one) for one in found.verdicts]))
    if found.figures:
        blocks.append(table(("figure", "measured"), [_figure_row(one) for one in found.figures]))
    if found.notes:
        blocks.append("".join(f"- {note}\n" for note in found.notes))
    return "\n".join(blocks)


def _verdict_row(verdict: Verdict) -> Row:
    wanted = f"{verdict.bound.value} {_quantity(verdict.target, verdict.unit)}"
    return verdict.name, wanted, _quantity(verdict.measured, verdict.unit), "ok" if verdict.ok else "MISSED"


def _figure_row(figure: Figure) -> Row:
    return figure.name, _quantity(figure.value, figure.unit)


def _quantity(value: float, unit: str) -> str:
    number = f"{rounded(value):,.10g}"
    return f"{number} {unit}" if unit else number


def table(titles: Row, rows: Sequence[Row]) -> str:
    """A Markdown table whose columns stand under each other."""
    widths = [max(3, *(len(row[column]) for row in (titles, *rows))) for column in range(len(titles))]
    ruler = tuple("-" * width for width in widths)
    return "".join(_line(row, widths) for row in (titles, ruler, *rows))


def _line(row: Row, widths: Sequence[int]) -> str:
    cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    return f"| {' | '.join(cells)} |\n"


def write(report: Report, folder: Path) -> tuple[Path, Path]:
    """Writes `<time>.json` and `<time>.md`; returns both."""
    folder.mkdir(parents=True, exist_ok=True)
    document, text = folder / f"{report.time}.json", folder / f"{report.time}.md"
    document.write_text(json.dumps(as_json(report), indent=2) + "\n")
    text.write_text(as_markdown(report))
    return document, text
