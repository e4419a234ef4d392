"""The servers of `coditect up`: their programs, modules and addresses."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path

import pytest

from coditect.local.errors import MissingServer
from coditect.local.servers import (
    EPHEMERAL_RANGE,
    LOWEST_PORT,
    Binaries,
    find_binaries,
    keep_addresses,
    link_modules,
    require_rabbitmq,
    require_redis,
)


def a_program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_programs_on_path_come_before_the_newest_of_the_usual_places(tmp_path: Path) -> None:
    a_program(tmp_path / "usr/lib/rabbitmq/lib/rabbitmq_server-3.9.13/sbin/rabbitmq-server")
    newest = a_program(tmp_path / "usr/lib/rabbitmq/lib/rabbitmq_server-3.10.8/sbin/rabbitmq-server")

    assert find_binaries({"PATH": ""}, root=tmp_path).rabbitmq == newest

    redis = a_program(tmp_path / "bin/redis-server")
    epmd = a_program(tmp_path / "bin/epmd")

    found = find_binaries({"PATH": str(tmp_path / "bin")}, root=tmp_path)

    assert (found.redis, found.epmd) == (redis, epmd)


@pytest.mark.parametrize(("beside", "usable"), [(False, False), (True, True)])
def test_rabbitmq_on_path_counts_only_with_its_environment_beside_it(
    tmp_path: Path, beside: bool, usable: bool
) -> None:
    script = a_program(tmp_path / "sbin/rabbitmq-server")
    if beside:
        a_program(tmp_path / "sbin/rabbitmq-env")

    found = find_binaries({"PATH": str(tmp_path / "sbin")}, root=tmp_path / "empty")

    assert (found.rabbitmq == script) is usable


def test_named_rabbitmq_comes_before_every_other_and_without_it_an_error_names_its_folder(tmp_path: Path) -> None:
    a_program(tmp_path / "usr/lib/rabbitmq/lib/rabbitmq_server-9.9.9/sbin/rabbitmq-server")
    a_program(tmp_path / "bin/epmd")
    named = a_program(tmp_path / "named/rabbitmq-server")
    epmd = a_program(tmp_path / "named/epmd")

    found = find_binaries(
        {"PATH": str(tmp_path / "bin"), "CODITECT_RABBITMQ_SBIN": str(tmp_path / "named")}, root=tmp_path
    )

    assert require_rabbitmq(found) == (named, epmd)

    found = find_binaries({"PATH": "", "CODITECT_RABBITMQ_SBIN": str(tmp_path / "empty")}, root=tmp_path)

    with pytest.raises(MissingServer, match=f"{tmp_path / 'empty'}.*\n.*CODITECT_RABBITMQ_SBIN"):
        require_rabbitmq(found)


@pytest.mark.parametrize("place", ["apt-get", "dnf", "brew", "docker", "CODITECT_AMQP_URL", "CODITECT_REDIS_URL"])
def test_missing_server_says_how_to_install_it(place: str) -> None:
    nothing = Binaries(rabbitmq=None, epmd=None, redis=None)

    with pytest.raises(MissingServer, match=place):
        require_rabbitmq(nothing)
    with pytest.raises(MissingServer, match=place):
        require_redis(nothing)


PLUGIN = "rabbitmq_management"


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """A RabbitMQ of a package, and the Erlang that it runs on."""
    erlang = tmp_path / "usr/lib/erlang"
    an_application(erlang / "lib/kernel-8.5.3")
    an_application(erlang / "lib/ssl-10.8.7", needs=["kernel", "crypto_that_is_not_here"])
    an_application(erlang / "lib/mnesia-4.21.3", needs=["kernel"])
    an_application(erlang / "lib/wx-2.2")
    (erlang / "bin").mkdir()
    (erlang / "bin/erl").touch(mode=0o755)
    home = tmp_path / "usr/lib/rabbitmq/lib/rabbitmq_server-3.10.8"
    an_application(home / "plugins/rabbit-3.10.8", needs=["ranch", "ssl"])
    an_application(home / "plugins/ranch-2.1.0")
    an_application(home / f"plugins/{PLUGIN}-3.10.8", needs=["rabbit", "cowboy", "mnesia"])
    an_application(home / "plugins/cowboy-2.8.0", needs=["ranch"])
    an_application(home / "plugins/rabbitmq_mqtt-3.10.8", needs=["rabbit"])
    return home / "sbin/rabbitmq-server"


def test_modules_of_a_plugin_are_linked_and_gone_at_a_start_without_it(server: Path, tmp_path: Path) -> None:
    modules, plugins = linked(server, tmp_path, plugins=[PLUGIN])

    assert modules == ["cowboy", "kernel", "mnesia", "rabbit", PLUGIN, "ranch", "ssl"]
    assert plugins == ["cowboy-2.8.0", "rabbit-3.10.8", f"{PLUGIN}-3.10.8"]

    assert linked(server, tmp_path, plugins=[]) == (["kernel", "mnesia", "rabbit", "ranch", "ssl"], ["rabbit-3.10.8"])


def test_broker_that_is_no_package_may_bring_an_erlang_of_its_own(server: Path, tmp_path: Path) -> None:
    modules, _ = linked(server, tmp_path, plugins=[], packaged=tmp_path / "elsewhere")

    assert modules == ["rabbit", "ranch"]


def test_plugin_that_is_not_found_leaves_the_search_to_the_broker(server: Path, tmp_path: Path) -> None:
    assert link_modules(server, "", plugins=[], folder=tmp_path / "node")
    assert not link_modules(server, "", plugins=["in_an_archive"], folder=tmp_path / "node")

    assert not list((tmp_path / "node").iterdir())


def an_application(folder: Path, *, needs: Iterable[str] = ()) -> None:
    name = folder.name.partition("-")[0]
    (folder / "ebin").mkdir(parents=True)
    (folder / f"ebin/{name}.beam").touch()
    needed = ",".join(needs)
    (folder / f"ebin/{name}.app").write_text(f"{{application, {name}, [\n {{applications, [{needed}]}}]}}.\n")


def linked(
    server: Path, tmp_path: Path, *, plugins: Iterable[str], packaged: Path | None = None
) -> tuple[list[str], list[str]]:
    """The modules and the plug-ins that the broker is shown."""
    path, node = str(tmp_path / "usr/lib/erlang/bin"), tmp_path / "node"
    assert link_modules(server, path, plugins=plugins, folder=node, packaged=packaged or tmp_path / "usr/lib/rabbitmq")
    assert all(link.exists() for link in node.glob("*/*"))
    modules, shown = (sorted(link.name for link in (node / name).iterdir()) for name in ("modules", "applications"))
    return [module.removesuffix(".beam") for module in modules], shown


def test_addresses_are_kept_below_the_ports_of_outgoing_connections_and_a_broken_file_is_written_anew(
    tmp_path: Path,
) -> None:
    file = tmp_path / "servers.json"

    first, second = keep_addresses(file), keep_addresses(file)

    assert first == second
    assert len(set(astuple(first.ports))) == 5
    assert first.amqp_url.endswith(f"@127.0.0.1:{first.ports.amqp}")
    assert first.redis_url.endswith(f"@127.0.0.1:{first.ports.redis}/0")

    start = int(EPHEMERAL_RANGE.read_text().split()[0]) if EPHEMERAL_RANGE.exists() else 32_768
    assert all(LOWEST_PORT <= port < max(start, LOWEST_PORT + 1_000) for port in astuple(first.ports))

    file.write_text("{")

    assert keep_addresses(file) == keep_addresses(file)


def test_taken_port_gives_new_ports_and_the_same_secrets(tmp_path: Path) -> None:
    file = tmp_path / "servers.json"
    first = keep_addresses(file)

    with socket.socket() as other:
        other.bind(("127.0.0.1", first.ports.redis))
        other.listen()
        second = keep_addresses(file)

    assert second.ports.redis != first.ports.redis
    assert (second.password, second.cookie) == (first.password, first.cookie)


def test_file_of_a_version_without_a_management_api_keeps_its_secrets(tmp_path: Path) -> None:
    file = tmp_path / "servers.json"
    first = keep_addresses(file)
    kept = json.loads(file.read_text())
    del kept["ports"]["management"]
    file.write_text(json.dumps(kept))

    second = keep_addresses(file)

    assert second.ports.management > 0
    assert (second.password, second.cookie) == (first.password, first.cookie)
