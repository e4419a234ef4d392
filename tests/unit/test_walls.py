"""The walls of `[tool.importlinter]` hold something, and name every package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from tests.servers import ROOT

CONFIG = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PUBLIC = {"coditect.errors", "coditect.testing"}
WITHOUT = {
    "1. the library's layers": '"coditect.client.client -> coditect"',
    "1. agents and examples import only public names": '"agents.tester -> coditect.aio.launch"',
    "2. Redis is spoken in one package": '"coditect.registry.** -> redis"',
    "2. SQLite is spoken in one package": '"dispatcher.store.sqlite.** -> sqlite3"',
}
"""Exceptions, each of one real import, without which its wall must fall."""


def contracts() -> list[dict[str, Any]]:
    return list(tomllib.loads(CONFIG)["tool"]["importlinter"]["contracts"])


def test_an_import_over_a_wall_breaks_it(tmp_path: Path) -> None:
    config = CONFIG
    for exception in WITHOUT.values():
        assert exception in config
        config = re.sub(re.escape(exception) + ",?", "", config)
    changed = tmp_path / "pyproject.toml"
    changed.write_text(config)

    lint = f"from importlinter.cli import lint_imports as lint; raise SystemExit(lint({str(changed)!r}))"
    wide = {**os.environ, "COLUMNS": "300"}
    done = subprocess.run([sys.executable, "-c", lint], cwd=ROOT, env=wide, capture_output=True, text=True, check=False)

    fallen = [line for line in done.stdout.splitlines() if " BROKEN" in line]
    assert (done.returncode, len(fallen)) == (1, len(WITHOUT)), done.stdout
    assert all(any(line.startswith(name) for line in fallen) for name in WITHOUT)


def test_agents_and_examples_may_import_no_package_that_is_not_public() -> None:
    (wall,) = (one for one in contracts() if one.get("source_modules") == ["agents", "examples"])
    packages = {
        f"coditect.{path.stem}"
        for path in (ROOT / "coditect").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }

    assert packages - {"coditect.__init__", "coditect.__main__"} - PUBLIC <= set(wall["forbidden_modules"])
