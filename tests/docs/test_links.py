"""Links between pages lead somewhere. Addresses of the outside are not tried: a test needs no network."""

from __future__ import annotations

import re
from pathlib import Path

from tests.docs.pages import anchors, links, pages
from tests.servers import ROOT

PAGES = pages()


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_each_link_leads_to_a_page_and_a_section_that_exist() -> None:
    broken = [
        f"{_name(page)}:{line}: {target}"
        for page in PAGES
        for line, target in links(page)
        if not _leads_somewhere(page, target)
    ]

    assert not broken


def _leads_somewhere(page: Path, target: str) -> bool:
    if re.match(r"[a-z]+:", target):
        return target.startswith("https://")
    path, _, anchor = target.partition("#")
    found = (page.parent / path).resolve() if path else page
    if not found.is_relative_to(ROOT) or not found.exists():
        return False
    return not anchor or (found.suffix == ".md" and anchor in anchors(found))


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, to_read = set[Path](), [ROOT / "README.md"]
    while to_read:
        page = to_read.pop()
        reached.add(page)
        targets = (target.partition("#")[0] for _, target in links(page) if "://" not in target)
        nearby = {(page.parent / target).resolve() for target in targets}
        to_read += [found for found in nearby if found.suffix == ".md" and found.exists() and found not in reached]

    assert {_name(page) for page in PAGES} - {_name(page) for page in reached} == set()


def test_every_decision_has_its_number_and_its_four_parts() -> None:
    decisions = sorted((ROOT / "docs" / "adr").glob("0*.md"))

    assert [int(page.name[:4]) for page in decisions] == list(range(1, len(decisions) + 1))
    for page in decisions:
        text = page.read_text(encoding="utf-8")
        assert text.startswith(f"# {int(page.name[:4])}. "), page.name
        parts = re.findall(r"^## (.+)$", text, re.MULTILINE)
        assert parts == ["Context", "Decision", "Alternatives", "Consequences"], page.name
