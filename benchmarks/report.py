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
    """The report of a run: its time (UTC, `YYYYMMDDTHHMMSSZ`), its command, the machine, and the findings."""

    time: str
    command: str
    machine: Mapping[str, str]
    findings: Sequence[Findings]

    @property
    def ok(self) -> bool:
        """Whether every part was measured and every target is met."""
        return all(found.complete and all(verdict.ok for verdict in found.verdicts) for found in self.findings)


def as_json(report: Report) -> dict[str, object]:
    """Return the whole report as values that JSON can express."""
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
    """Return the report as a Markdown document."""
    machine = "\n".join(f"- {name}: {value}" for name, value in report.machine.items())
    parts = "\n".join(findings_as_markdown(found) for found in report.findings)
    return f"# Benchmarks, {report.time}\n\n- command: `{report.command}`\n{machine}\n\n{parts}"


def findings_as_markdown(found: Findings) -> str:
    """Return the targets, the other figures and the notes of one part as Markdown."""
    blocks = [f"## {found.part}\n"]
    if found.verdicts:
        blocks.append(
            table(("target", "wanted", "measured", ""), [_verdict_row(verdict) for verdict in found.verdicts])
        )
    if found.figures:
        blocks.append(table(("figure", "measured"), [_figure_row(figure) for figure in found.figures]))
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
    """Return a Markdown table whose columns are aligned."""
    widths = [max(3, *(len(row[column]) for row in (titles, *rows))) for column in range(len(titles))]
    ruler = tuple("-" * width for width in widths)
    return "".join(_line(row, widths) for row in (titles, ruler, *rows))


def _line(row: Row, widths: Sequence[int]) -> str:
    cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    return f"| {' | '.join(cells)} |\n"


def write(report: Report, folder: Path) -> tuple[Path, Path]:
    """Write `<time>.json` and `<time>.md`, and return both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    document, text = folder / f"{report.time}.json", folder / f"{report.time}.md"
    document.write_text(json.dumps(as_json(report), indent=2) + "\n")
    text.write_text(as_markdown(report))
    return document, text
