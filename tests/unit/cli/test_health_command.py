"""`coditect doctor --health` says what the program at the port says, and its exit code tells a container's engine."""

from __future__ import annotations

import asyncio
import socket

import pytest

from coditect.agent.health import health_server
from tests.unit.cli.scene import Ran, Terminal


async def asked(terminal: Terminal, *words: str, wrong: str = "", by: pytest.MonkeyPatch | None = None) -> Ran:
    """What the command says of a program of which this is wrong; its port is given as an option or in the variable."""
    async with health_server(lambda: wrong, host="127.0.0.1", port=0) as port:
        if by is not None:
            by.setenv("CODITECT_HEALTH_PORT", str(port))
            return await asyncio.to_thread(terminal.run, "doctor", "--health", *words)
        return await asyncio.to_thread(terminal.run, "doctor", "--health", "--port", str(port), *words)


async def test_program_that_takes_work_is_healthy(terminal: Terminal) -> None:
    ran = await asked(terminal)

    assert (ran.code, ran.out) == (0, "ready\n")


async def test_program_that_takes_none_is_not_and_says_why(terminal: Terminal) -> None:
    ran = await asked(terminal, wrong="no connection to the broker")

    assert (ran.code, ran.out) == (1, "no connection to the broker\n")


async def test_answer_for_programs(terminal: Terminal) -> None:
    ran = await asked(terminal, "--output", "json", wrong="a loop is down: lease")

    assert (ran.code, ran.json) == (1, {"ready": False, "detail": "a loop is down: lease"})


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_port_is_found_where_the_program_finds_it(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setenv("CODITECT_HEALTH_HOST", host)

    assert (await asked(terminal, by=monkeypatch)).code == 0


def test_without_a_port_the_error_names_the_variable(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CODITECT_HEALTH_PORT", raising=False)

    ran = terminal.run("doctor", "--health")

    assert ran.code == 1
    assert "CODITECT_HEALTH_PORT" in ran.err


def test_port_where_nothing_listens_is_not_healthy(terminal: Terminal) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        ran = terminal.run("doctor", "--health", "--port", str(nobody.getsockname()[1]))

    assert ran.code == 1
    assert "Nothing answers at the health port" in ran.err
