from __future__ import annotations

from pathlib import Path

import pytest

from coditect.local import foundationdb
from coditect.local.errors import MissingServer
from coditect.local.foundationdb import FoundationDBPrograms, find_foundationdb, private_foundationdb


def a_program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foundationdb, "MORE_FOLDERS", ())


def test_programs_on_path_are_found(tmp_path: Path) -> None:
    server, cli = a_program(tmp_path / "sbin/fdbserver"), a_program(tmp_path / "bin/fdbcli")

    found = find_foundationdb({"PATH": f"{tmp_path}/sbin:{tmp_path}/bin"})

    assert found == FoundationDBPrograms(server, cli)


def test_named_server_has_the_command_line_beside_it(tmp_path: Path) -> None:
    a_program(tmp_path / "bin/fdbcli")
    server, cli = a_program(tmp_path / "built/fdbserver"), a_program(tmp_path / "built/fdbcli")

    found = find_foundationdb({"PATH": f"{tmp_path}/bin", "CODITECT_FDBSERVER": str(server)})

    assert found == FoundationDBPrograms(server, cli)


@pytest.mark.parametrize("there", ["fdbserver", "fdbcli"])
def test_one_program_without_the_other_is_none(tmp_path: Path, there: str) -> None:
    a_program(tmp_path / there)

    assert find_foundationdb({"PATH": str(tmp_path)}) is None


async def test_missing_programs_are_named_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(MissingServer, match="CODITECT_FDBSERVER"):
        await private_foundationdb(tmp_path, environ={"PATH": str(tmp_path)}).__aenter__()
