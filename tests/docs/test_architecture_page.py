"""The drawing of the house in docs/architecture.md, beside the layers that import-linter holds."""

from __future__ import annotations

import re
import tomllib
from itertools import pairwise

from tests.servers import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]


def drawn(package: str, until: str) -> list[list[str]]:
    """The names of each line of a package's part of the drawing."""
    part = PAGE.split(f"\n{package}/ ", 1)[1].split(f"\n{until}/", 1)[0]
    return [re.findall(r"(?:^  |  |, )([a-z_]+)(?:/|\.py)(?=[ ,])", line) for line in part.splitlines()[1:]]


def test_every_package_is_drawn_above_those_that_it_imports() -> None:
    for package, until in (("coditect", "dispatcher"), ("dispatcher", "agents")):
        (layers,) = (one["layers"] for one in CONTRACTS if one.get("containers") == [package])
        rank = {name: -number for number, layer in enumerate(layers) for name in layer.split(" : ")}
        del rank["__main__"]
        ranks = [[rank[name] for name in line if name in rank] for line in drawn(package, until)]

        assert {name for line in drawn(package, until) for name in line} >= rank.keys()
        lines = [line for line in ranks if line]
        assert all(max(low) <= min(high) for low, high in pairwise(lines)), lines
