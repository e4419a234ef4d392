import os
import sys
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from coditect.aio.launch import READY_FILE
from coditect.local.errors import MissingServer
from coditect.local.servers import Addresses, Binaries, ServerPorts, rabbitmq_children, redis_child
from coditect.local.up import API_KEY, Program, Role, UpPlan, process_plan, require_servers

ADDRESSES = Addresses(ServerPorts(amqp=20001, distribution=20002, epmd=20003, redis=20004), "secret", "COOKIE")
BINARIES = Binaries(rabbitmq=Path("/r/rabbitmq-server"), epmd=Path("/r/epmd"), redis=Path("/r/redis-server"))


def test_plan_survives_the_way_to_the_background(tmp_path: Path) -> None:
    plan = UpPlan(tmp_path, Path("/code"), (Program("one", ("run", "it"), {"A": "b"}, announces_ready=True),))

    assert TypeAdapter(UpPlan).validate_json(TypeAdapter(UpPlan).dump_json(plan)) == plan


async def test_given_addresses_start_no_server_and_reach_the_programs(tmp_path: Path) -> None:
    program = Program("one", ("run",), announces_ready=True)
    plan = UpPlan(tmp_path, tmp_path, (program,), amqp_url="amqp://a", redis_url="redis://r")

    parts = process_plan(plan, environ={"PATH": ""})

    (child,) = parts.children
    assert (child.name, child.folder) == ("one", tmp_path)
    assert (child.env["CODITECT_AMQP_URL"], child.env["CODITECT_REDIS_URL"]) == ("amqp://a", "redis://r")
    assert child.ready is not None
    assert not await child.ready()
    Path(child.env[READY_FILE]).touch()
    assert await child.ready()


def test_missing_binaries_matter_only_for_servers_that_are_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[UpPlan.__module__], "find_binaries", lambda _: Binaries(None, None, None))

    require_servers(UpPlan(tmp_path, tmp_path, amqp_url="amqp://a", redis_url="redis://r"), environ={})
    with pytest.raises(MissingServer, match="RabbitMQ"):
        require_servers(UpPlan(tmp_path, tmp_path, redis_url="redis://r"), environ={})
    with pytest.raises(MissingServer, match="Redis"):
        require_servers(UpPlan(tmp_path, tmp_path, amqp_url="amqp://a"), environ={})


def test_broker_keeps_to_its_folder_and_the_loopback_interface(tmp_path: Path) -> None:
    foreign = {"RABBITMQ_NODENAME": "rabbit@elsewhere", "ERL_FLAGS": "+S 64", "HOME": "/root", "KEPT": "yes"}

    epmd, broker = rabbitmq_children(BINARIES, ADDRESSES, folder=tmp_path, environ=foreign)

    configuration = (tmp_path / "rabbitmq.conf").read_text()
    assert "listeners.tcp.local = 127.0.0.1:20001" in configuration
    assert "raft.wal_max_size_bytes = 64000000" in configuration
    assert "{127,0,0,1}" in broker.env["RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS"]
    assert broker.env["RABBITMQ_NODENAME"] == "coditect@localhost"
    assert "ERL_FLAGS" not in broker.env
    assert broker.env["KEPT"] == "yes"
    assert broker.env["HOME"].startswith(str(tmp_path))
    assert epmd.argv == ("/r/epmd", "-port", "20003", "-address", "127.0.0.1")
    assert epmd.stage < broker.stage
    redis_child(BINARIES, ADDRESSES, folder=tmp_path / "redis", environ=foreign)
    made = [file for file in tmp_path.rglob("*") if not file.is_symlink()]
    assert tmp_path / "home/.erlang.cookie" in made
    assert [file for file in made if file.stat().st_mode & 0o077] == []


def test_server_files_are_written_again_and_redis_is_durable_and_evicts_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        rabbitmq_children(BINARIES, ADDRESSES, folder=tmp_path, environ=os.environ)

    assert (tmp_path / "home/.erlang.cookie").read_text() == "COOKIE"

    redis_child(BINARIES, ADDRESSES, folder=tmp_path, environ={})

    lines = (tmp_path / "redis.conf").read_text().splitlines()
    for line in ("bind 127.0.0.1", "appendonly yes", "appendfsync everysec", "maxmemory-policy noeviction"):
        assert line in lines


SECRETS = {
    "CODITECT_APPROVAL_KEY": {"dispatcher", "api"},
    "CODITECT_MANAGEMENT_URL": {"dispatcher", "api"},
    "CODITECT_STORE_URL": {"dispatcher"},
    "FDB_TLS_PASSWORD": {"dispatcher"},
    "CODITECT_API_WEBHOOK_KEY": {"api"},
    "CODITECT_API_KEY": {"api"},
    "CODITECT_CHAT_KEY": {"agent"},
    "CODITECT_A2A_TOKEN": {"agent"},
    "CODITECT_GIT_TOKEN": {"agent"},
    "CODITECT_AMQP_URL": {"dispatcher", "api", "agent"},
    "ANOTHER_KEY": {"dispatcher", "api", "agent", "epmd", "rabbitmq", "redis"},
}


def test_each_program_gets_the_secrets_of_its_role_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[UpPlan.__module__], "find_binaries", lambda _: BINARIES)
    programs = tuple(Program(role.value, ("run",), role=role) for role in Role)
    given = dict.fromkeys(SECRETS, "of the user")

    parts = process_plan(UpPlan(tmp_path, tmp_path, programs), environ=given)

    found = {name: {child.name for child in parts.children if name in child.env} for name in SECRETS}
    assert found == SECRETS


def test_given_management_url_reaches_no_agent(tmp_path: Path) -> None:
    programs = tuple(Program(role.value, ("run",), role=role) for role in Role)
    plan = UpPlan(tmp_path, tmp_path, programs, "amqp://a", "redis://r", management_url="http://m")

    parts = process_plan(plan, environ={})

    assert {child.name for child in parts.children if "CODITECT_MANAGEMENT_URL" in child.env} == {"dispatcher", "api"}


def test_api_gets_a_key_of_its_own_unless_the_user_says_who_may_use_it(tmp_path: Path) -> None:
    plan = UpPlan(tmp_path, tmp_path, (Program("api", ("run",), role=Role.API),), "amqp://a", "redis://r")

    made, other = (process_plan(plan, environ={}) for _ in range(2))

    key = made.variables[API_KEY]
    assert made.children[0].env[API_KEY] == key
    assert len(key) > 40
    assert key != other.variables[API_KEY]
    assert process_plan(plan, environ={API_KEY: "mine"}).variables[API_KEY] == "mine"
    both = {API_KEY: "mine", "CODITECT_API_KEYS": "keys"}
    assert process_plan(plan, environ=both).variables[API_KEY] == "mine"
    for environ in ({"CODITECT_API_KEYS": "keys"}, {"CODITECT_API_OIDC_ISSUER": "https://i"}):
        assert API_KEY not in process_plan(plan, environ=environ).variables
    alone = process_plan(UpPlan(tmp_path, tmp_path, (), "amqp://a", "redis://r"), environ={})
    assert API_KEY not in alone.variables
