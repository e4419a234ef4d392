"""The walls of `[tool.importlinter]` hold something, and name every package."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from tests.servers import ROOT

CONFIG = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PUBLIC = {"coditect.errors", "coditect.testing"}
WITHOUT_A_WALL = {
    "psutil": "of many packages",
    "pydantic": "of many packages",
    "pydantic_core": "pydantic's",
    "typing_extensions": "pydantic's",
}
COPIED = {"starter", "till"}
"""Folders of programs that are copied elsewhere before they run, and import their own files."""
WITHOUT = {
    '"coditect.client.client -> coditect"': "coditect.client.client -> coditect (",
    '"agents.tester -> coditect.aio.launch"': "agents.tester -> coditect.aio.launch",
    '"coditect.registry.** -> redis"': "coditect.registry.redis -> redis",
    '"dispatcher.store.sqlite.** -> sqlite3"': "dispatcher.store.sqlite.file -> sqlite3",
    '"dispatcher.coordination.ticks -> datetime"': "dispatcher.coordination.ticks -> datetime",
}
"""Exceptions of the walls, and an import that breaks its wall without its exception."""


def contracts() -> list[dict[str, Any]]:
    return list(tomllib.loads(CONFIG)["tool"]["importlinter"]["contracts"])


def test_an_import_over_a_wall_breaks_it(tmp_path: Path) -> None:
    config = CONFIG
    for exception in WITHOUT:
        assert exception in config
        config = re.sub(re.escape(exception) + ",?", "", config)
    changed = tmp_path / "pyproject.toml"
    changed.write_text(config)

    lint = f"from importlinter.cli import lint_imports as lint; raise SystemExit(lint({str(changed)!r}))"
    done = subprocess.run([sys.executable, "-c", lint], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert [broken for broken in WITHOUT.values() if broken not in done.stdout] == []


def test_every_foreign_library_has_a_wall() -> None:
    (wall,) = (one for one in contracts() if one["name"].startswith("2."))
    files = [
        path
        for room in wall["source_modules"]
        for path in (ROOT / room).rglob("*.py")
        if COPIED.isdisjoint(path.relative_to(ROOT).parts)
    ]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    foreign = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names - {*wall["source_modules"]}

    assert foreign - {*wall["forbidden_modules"]} == WITHOUT_A_WALL.keys()


def test_agents_and_examples_may_import_no_package_that_is_not_public() -> None:
    (wall,) = (one for one in contracts() if one.get("source_modules") == ["agents", "examples"])
    packages = {
        f"coditect.{path.stem}"
        for path in (ROOT / "coditect").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }

    assert packages - {"coditect.__init__", "coditect.__main__"} - PUBLIC <= set(wall["forbidden_modules"])
