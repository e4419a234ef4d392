from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coditect.agent.declaration import load_agents
from coditect.agent.health import health_server
from coditect.agent.program import run
from coditect.errors import CoditectError, SetupError
from coditect.settings.settings import Settings

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


@pytest.mark.parametrize("path", ["missing.py", ".", "./", "agents/", "agents/missing"])
def test_file_that_is_not_there_is_told_with_what_to_do(path: str) -> None:
    with pytest.raises(SetupError) as refused:
        load_agents(path)

    assert refused.value.facts["path"] == path
    assert "coditect init" in str(refused.value.facts["fix"])


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


BROKEN = {
    "syntax": ("x = 1\ndef review(:\n", 2, "SyntaxError"),
    "name": ("x = 1\n\ny = agnet\n", 3, "NameError: name 'agnet' is not defined"),
    "keyword": ('from coditect import Agent\na = Agent("a", slot=3)\n', 2, None),
    "module": ("import no_such_module_at_all\n", 1, "ModuleNotFoundError"),
    "policy": ("from coditect import Retry\n\nr = Retry(max_attempts='3')\n", 3, None),
    "decorator": (
        "from coditect import Agent\na = Agent('a')\n@a.capability('a.b', retry='3')\ndef b(t): ...\n",
        3,
        None,
    ),
    "exit": ("import sys\nsys.exit('no settings')\n", 2, "SystemExit: no settings"),
    "deep": ("import json\n\njson.loads('{')\n", 3, "JSONDecodeError"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_with_a_mistake_names_its_line(kind: str, tmp_path: Path) -> None:
    text, line, reason = BROKEN[kind]
    file = tmp_path / f"mistaken_{kind}.py"
    file.write_text(text)

    with pytest.raises(CoditectError) as raised:
        load_agents(str(file))

    assert raised.value.facts["at"] == f"{file}:{line}"
    assert reason is None or reason in str(raised.value.facts["reason"])


def test_a_command_tells_of_the_mistake_and_starts_nothing(tmp_path: Path) -> None:
    file = tmp_path / "misspelt.py"
    file.write_text("agent = Agnet('a')\n")

    ran = subprocess.run(
        [sys.executable, "-m", "coditect", "up", str(file)],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip

    assert ran.returncode == 1
    assert f"{file}:1" in ran.stderr
    assert "Agnet" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / ".coditect").exists()


async def test_a_port_that_is_taken_is_a_setup_error_with_the_way_out() -> None:
    async with health_server(lambda: "", host="127.0.0.1", port=0) as port:
        with pytest.raises(SetupError) as raised:
            async with health_server(lambda: "", host="127.0.0.1", port=port):
                pass

    assert raised.value.facts["port"] == port
    assert "--health-port" in str(raised.value.facts["fix"])
