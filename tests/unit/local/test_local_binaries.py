from pathlib import Path

import pytest

from coditect.local.errors import MissingServer
from coditect.local.servers import Binaries, find_binaries, require_rabbitmq, require_redis


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

    a_program(tmp_path / "usr/lib/rabbitmq/lib/rabbitmq_server-9.9.9/sbin/rabbitmq-server")

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
