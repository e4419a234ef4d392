from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest

from coditect.local import private
from coditect.local.errors import MissingServer
from coditect.local.private import FoundationDBPrograms, find_foundationdb, private_foundationdb
from coditect.testing.servers import AMQP, REDIS, WANTED, running_servers

SERVER = f"""#!{sys.executable}
import socket, sys, time
host, port = sys.argv[sys.argv.index("-p") + 1].split(":")
listening = socket.create_server((host, int(port)))
while True:
    time.sleep(60)
"""
"""A program that listens where `fdbserver` would."""
CLI = """#!/bin/sh
case "$6" in
    status*json)
        echo asked >> asked
        if [ $(wc -l < asked) -lt 3 ]; then committed=0; else committed=4; fi
        counts='"started": {"counter": 5}, "committed": {"counter": '$committed'}, "conflicted": {"counter": 1}'
        echo "{\\"cluster\\": {\\"workload\\": {\\"transactions\\": {$counts}}}}" ;;
    status*) [ -f configured ] && echo "The database is available." ;;
    configure*) echo "$6" > configured ;;
esac
"""
"""A program that answers as `fdbcli` does; its counters lag behind by two questions."""


def a_program(path: Path, text: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "MORE_FOLDERS", ())


def test_programs_on_path_are_found_and_a_server_takes_the_command_line_beside_it(tmp_path: Path) -> None:
    server, cli = a_program(tmp_path / "sbin/fdbserver"), a_program(tmp_path / "bin/fdbcli")

    found = find_foundationdb({"PATH": f"{tmp_path}/sbin:{tmp_path}/bin"})

    assert found == FoundationDBPrograms(server, cli)

    server, cli = a_program(tmp_path / "built/fdbserver"), a_program(tmp_path / "built/fdbcli")

    found = find_foundationdb({"PATH": f"{tmp_path}/bin:{tmp_path}/built"})

    assert found == FoundationDBPrograms(server, cli)


@pytest.mark.parametrize("there", ["fdbserver", "fdbcli"])
def test_one_program_without_the_other_is_none(tmp_path: Path, there: str) -> None:
    a_program(tmp_path / there)

    assert find_foundationdb({"PATH": str(tmp_path)}) is None


async def test_missing_programs_are_named_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(MissingServer, match="fdbserver to PATH"):
        await private_foundationdb(tmp_path, environ={"PATH": str(tmp_path)}).__aenter__()


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """One with both programs on PATH."""
    a_program(tmp_path / "bin/fdbserver", SERVER)
    a_program(tmp_path / "bin/fdbcli", CLI)
    monkeypatch.chdir(tmp_path)  # where the stand-in of the command line notes what it was told
    kept = {name: value for name, value in os.environ.items() if name != "FDB_CLUSTER_FILE"}
    return {**kept, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}


def test_fixture_of_tests_takes_a_private_cluster_where_no_docker_is(tmp_path: Path, environ: dict[str, str]) -> None:
    named = {**environ, AMQP: "amqp://a:1", REDIS: "redis://b:2/0", WANTED: "private"}

    with running_servers(foundationdb=True, environ=named, folder=tmp_path / "run") as servers:
        assert servers.store_url == f"fdb:{tmp_path}/run/foundationdb/fdb.cluster"
        assert (tmp_path / "run/foundationdb/fdb.cluster").read_text().startswith("private:")


@pytest.mark.parametrize(("processes", "copies"), [(1, "single"), (3, "double")])
async def test_cluster_is_configured_once_and_its_processes_are_killed_and_started_again(
    tmp_path: Path, environ: dict[str, str], processes: int, copies: str
) -> None:
    async with private_foundationdb(tmp_path / "cluster", environ=environ, processes=processes) as cluster:
        assert (tmp_path / "configured").read_text().split() == ["configure", "new", copies, "ssd"]
        assert cluster.cluster_file.read_text().startswith("private:")
        assert set(cluster.processes) == set(cluster.names) and len(cluster.names) == processes

        before = cluster.processes[cluster.coordinator]
        assert "--knob_commit_transaction_batch_interval_from_idle=0" in psutil.Process(before.pid).cmdline()
        await cluster.kill(cluster.coordinator)
        assert cluster.coordinator not in cluster.processes
        await cluster.start_one(cluster.coordinator)
        assert cluster.processes[cluster.coordinator] != before

        assert await cluster.transactions() == {"started": 5, "committed": 4, "conflicted": 1}
        started = cluster.processes

    assert not cluster.processes
    assert not any(Path(f"/proc/{process.pid}").exists() for process in started.values())
