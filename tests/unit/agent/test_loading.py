from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coditect.agent.loading import load_agents
from coditect.agent.program import run
from coditect.errors import SetupError
from coditect.settings import Settings

TWO = "from coditect import Agent\nfirst = Agent('first')\nsecond = Agent('second')\nagain = first\n"


@pytest.fixture(autouse=True)
def _clean_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        del sys.modules[name]


def test_file_gives_its_agents_once_each(tmp_path: Path) -> None:
    file = tmp_path / "two_agents.py"
    file.write_text(TWO)

    assert [one.name for one in load_agents(str(file))] == ["first", "second"]
    assert [one.name for one in load_agents(f"{file}:second")] == ["second"]


def test_file_in_a_package_is_imported_under_its_name(tmp_path: Path) -> None:
    package = tmp_path / "fleet_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "names.py").write_text("NAME = 'packed'\n")
    (package / "packed.py").write_text(
        "from coditect import Agent\nfrom fleet_package.names import NAME\npacked = Agent(NAME)\n"
    )

    assert load_agents(str(package / "packed.py"))[0].name == "packed"


def test_module_is_found_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_agents.py").write_text(TWO)
    monkeypatch.chdir(tmp_path)

    assert len(load_agents("module_agents")) == 2


@pytest.mark.parametrize("target", ["nowhere.py", "no.such.module", "{tmp}/empty.py", "{tmp}/empty.py:name"])
def test_what_cannot_be_loaded_is_a_setup_error(target: str, tmp_path: Path) -> None:
    (tmp_path / "empty.py").touch()

    with pytest.raises(SetupError):
        load_agents(target.replace("{tmp}", str(tmp_path)))


def test_several_agents_in_a_file_need_a_name(tmp_path: Path) -> None:
    file = tmp_path / "several_agents.py"
    file.write_text(TWO)

    with pytest.raises(SetupError, match=r"name one.*several_agents.py:\w+"):
        run(str(file), Settings())
