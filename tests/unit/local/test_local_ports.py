import json
import socket
from dataclasses import astuple
from pathlib import Path

from coditect.local.servers import EPHEMERAL_RANGE, LOWEST_PORT, keep_addresses


def test_addresses_are_kept_below_the_ports_of_outgoing_connections_and_a_broken_file_is_written_anew(
    tmp_path: Path,
) -> None:
    file = tmp_path / "servers.json"

    first, second = keep_addresses(file), keep_addresses(file)

    assert first == second
    assert len(set(astuple(first.ports))) == 5
    assert first.amqp_url.endswith(f"@127.0.0.1:{first.ports.amqp}")
    assert first.redis_url.endswith(f"@127.0.0.1:{first.ports.redis}/0")

    chosen = keep_addresses(tmp_path / "servers.json").ports

    start = int(EPHEMERAL_RANGE.read_text().split()[0]) if EPHEMERAL_RANGE.exists() else 32_768
    assert all(LOWEST_PORT <= port < max(start, LOWEST_PORT + 1_000) for port in astuple(chosen))

    file = tmp_path / "servers.json"
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
