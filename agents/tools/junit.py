"""A reader of pytest's JUnit reports that trusts nothing, since the tested code could write the file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

_MAX_REPORT_BYTES = 16_777_216


@dataclass(slots=True)
class Case:
    """A test in a report, with its outcome: passed, failed, errored or skipped."""

    nodeid: str
    outcome: str
    message: str = ""


@dataclass(slots=True)
class JUnitReport:
    """The tests of a pytest run; `readable` is False for a missing or untrustworthy report."""

    readable: bool
    cases: list[Case] = field(default_factory=list)

    def count(self, outcome: str) -> int:
        """Return how many tests of the report had a given outcome."""
        return sum(case.outcome == outcome for case in self.cases)


def read_junit(path: Path) -> JUnitReport:
    """Read a JUnit report file; invalid content gives an unreadable report, never an error.

    Refused: more than 16 MiB, and any document type declaration (no entity is ever expanded).
    """
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _MAX_REPORT_BYTES:
        return JUnitReport(readable=False)
    text = path.read_bytes()
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        return JUnitReport(readable=False)
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - bounded, and without entities
    except ElementTree.ParseError:
        return JUnitReport(readable=False)
    return JUnitReport(readable=True, cases=list(_cases(root)))


def _cases(root: ElementTree.Element) -> Iterator[Case]:
    for element in root.iter("testcase"):
        case = Case(_nodeid(element), "passed")
        # A test that failed and whose teardown then broke has both; the failure is the news.
        for tag, outcome in (("skipped", "skipped"), ("error", "errored"), ("failure", "failed")):
            found = element.find(tag)
            if found is not None:
                case.outcome, case.message = outcome, _message(found)
        yield case


def _nodeid(element: ElementTree.Element) -> str:
    file, classname, name = (element.get(key, "") for key in ("file", "classname", "name"))
    if not file:
        return "::".join(part for part in (classname, name) if part)
    module = file.removesuffix(".py").replace("/", ".")
    classes = classname.removeprefix(module).strip(".").split(".") if classname.startswith(module) else []
    return "::".join(part for part in (file, *classes, name) if part)


def _message(element: ElementTree.Element) -> str:
    return (element.get("message") or element.text or "").strip()
