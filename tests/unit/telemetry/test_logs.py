"""What the lines of a log carry: the ids of the context, and never a secret or a payload."""

from __future__ import annotations

import io
import json
import logging
import logging.config
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coditect import Agent, errors
from coditect.model.capability import Priority
from coditect.model.ids import AgentId, TaskId
from coditect.model.task import Owner, Task
from coditect.settings.addresses import secrets_in
from coditect.settings.settings import Settings, read_settings
from coditect.telemetry.logs import CURRENT_AGENT, CURRENT_TASK, LogLevels, configure_logs
from coditect.wire.control_messages import LogLevelOrder
from tests.support import eventually
from tests.unit.agent.scene import open_scene

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "s3cret/w:rd"
AMQP = "amqp://me:s3cret%2Fw%3Ard@localhost:5672/"


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def _logging() -> Iterator[None]:
    """The logging of the test run is as before afterwards."""
    root = logging.getLogger()
    names = {*root.manager.loggerDict, "a2a", "aiormq", "asyncio", "httpx", "coditect.agent.runtime"}
    loggers = [logging.getLogger(name) for name in names]
    before = [(one, one.level, one.disabled) for one in loggers]
    handlers, level, disabled_up_to = root.handlers[:], root.level, root.manager.disable
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.disable(disabled_up_to)
    for logger, own_level, disabled in before:  # `dictConfig` disables every logger that there is
        logger.setLevel(own_level)
        logger.disabled = disabled


pytestmark = pytest.mark.usefixtures("_logging")


def configured(**fields: Any) -> io.StringIO:
    """Where the lines of the logs go from now on."""
    stream = io.StringIO()
    configure_logs(Settings(**fields), stream=stream)
    return stream


def written(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_the_ids_of_its_context_first() -> None:
    stream = configured(log_format="json")
    owner = Owner("flow-1", "node", "3", 7)
    task = Task("a.b", Priority.P1, b"", TaskId("task-1"), owner=owner, traceparent=f"00-{TRACE}-{SPAN}-01")
    outer = CURRENT_TASK.set(task), CURRENT_AGENT.set(AgentId("agent-1"))

    logging.getLogger("a.b").warning("It went on", extra={"queue": "q"})
    CURRENT_TASK.reset(outer[0])
    CURRENT_AGENT.reset(outer[1])
    logging.getLogger("a.b").warning("It went on", extra={"task_id": "its own", "color_message": "It went %s"})

    first, second = written(stream)
    assert list(first) == [
        "timestamp", "level", "event", "logger", "trace_id", "span_id", "task_id", "workflow_id", "agent_id", "queue",
    ]  # fmt: skip
    assert [first[name] for name in ("trace_id", "span_id", "task_id", "workflow_id", "agent_id")] == [
        TRACE, SPAN, "task-1", "flow-1", "agent-1",
    ]  # fmt: skip
    assert (second["task_id"], "agent_id" in second, "trace_id" in second) == ("its own", False, False)
    assert "color_message" not in second


@pytest.mark.parametrize(
    ("form", "stream", "human"),
    [
        ("auto", io.StringIO(), False),
        ("auto", Screen(), True),
        ("json", Screen(), False),
        ("human", io.StringIO(), True),
    ],
)
def test_the_format_is_the_chosen_one_or_fits_the_stream(form: str, stream: io.StringIO, human: bool) -> None:
    configure_logs(Settings(log_format=form), stream=stream)

    logging.getLogger("a").error("It broke")

    assert stream.getvalue().startswith("{") is not human


def test_a_nonsense_format_is_refused_by_the_name_of_its_variable() -> None:
    assert read_settings({"CODITECT_LOG_FORMAT": "human"}).log_format == "human"
    with pytest.raises(errors.SetupError) as refused:
        read_settings({"CODITECT_LOG_FORMAT": "xml"})

    assert "CODITECT_LOG_FORMAT" in str(refused.value)


@pytest.mark.parametrize("form", ["json", "human"])
def test_no_line_has_a_password(form: str) -> None:
    stream = configured(amqp_url=AMQP, approval_key='ke"yring', log_format=form)

    for told in (AMQP, SECRET, 'ke"yring', "redis://:other-secret@there/0"):
        logging.getLogger("a").error("Refused: %s", told, extra={"given": told})

    text = stream.getvalue()
    assert not [secret for secret in (SECRET, "s3cret%2F", "yring", "other-secret") if secret in text]
    assert text.count("***") == 8


def test_secrets_are_passwords_of_addresses_and_fields_without_repr_but_no_plain_words() -> None:
    settings = Settings(amqp_url=AMQP, redis_url="redis://default:guest@here/0", blob_url="s3://key:a-secret@bucket")

    assert secrets_in(settings) == {SECRET, "s3cret%2Fw%3Ard", "a-secret"}
    assert secrets_in(replace(settings, approval_key="signing", workspace="/a/b")) >= {"signing"}


async def test_what_a_handler_logs_has_the_ids_and_no_line_has_the_payload() -> None:
    stream = configured(log_level="DEBUG", log_format="json")
    agent = Agent("worker", slots=4)

    @agent.capability("on.loop")
    async def on_loop(value: dict[str, str]) -> str:
        logging.getLogger("mine").info("Looked at it")
        return value["text"]

    @agent.capability("in.thread")
    def in_thread(value: dict[str, str]) -> str:
        logging.getLogger("mine").info("Looked at it")
        raise OSError("no such file")

    async with open_scene() as scene:
        await scene.start(agent)
        client = await scene.client()
        handle = await client.submit("on.loop", {"text": "the-payload"})
        await handle.result(timeout=5)
        failing = await client.submit("in.thread", {"text": "the-payload"})
        with pytest.raises(errors.TaskFailed):
            await failing.result(timeout=5)

    own = [line["task_id"] for line in written(stream) if line["logger"] == "mine"]
    assert own[:1] == [handle.task_id]
    assert set(own[1:]) == {failing.task_id}
    assert len(own) >= 2
    assert "the-payload" not in stream.getvalue()


async def test_levels_last_for_their_time_and_go_back_to_those_of_the_start() -> None:
    levels, logger = LogLevels(), logging.getLogger("coditect.agent.runtime")

    levels.carry_out(LogLevelOrder("agent.runtime", "debug", 0.05))
    first = logger.level
    await eventually(lambda: logger.level == logging.NOTSET)
    levels.carry_out(LogLevelOrder("agent.runtime", "debug", 0.05))
    levels.carry_out(LogLevelOrder("agent.runtime", "error"))

    assert first == logging.DEBUG
    assert logger.level == logging.ERROR
    levels.carry_out(LogLevelOrder("agent.runtime", None))
    assert logger.level == logging.NOTSET

    configure_logs(Settings(log_level="WARNING"), stream=io.StringIO())
    levels, root = LogLevels(), logging.getLogger()

    levels.carry_out(LogLevelOrder("", "debug"))
    assert root.level == logging.DEBUG
    levels.carry_out(LogLevelOrder("", None))

    assert root.level == logging.WARNING


@pytest.mark.parametrize("content", [None, 7, {}, {"logger": "a", "level": "loud"}, {"logger": 1, "level": "debug"}])
def test_what_is_no_order_is_refused(content: object) -> None:
    with pytest.raises(errors.InvalidTask):
        LogLevelOrder.read(content)


@pytest.mark.parametrize("silence", ["dictConfig", "disable"])
def test_logs_are_configured_in_place_of_what_a_module_set_up(silence: str) -> None:
    own, stream = logging.getLogger("coditect.agent.runtime"), io.StringIO()
    if silence == "disable":
        logging.disable(logging.CRITICAL)
    else:
        logging.config.dictConfig({"version": 1, "root": {"level": "CRITICAL", "handlers": []}})
        assert own.disabled

    configure_logs(Settings(log_format="json"), stream=stream)
    own.info("The agent is ready")

    assert [line["event"] for line in written(stream)] == ["The agent is ready"]


WHOLE_AGENT = """
import os, signal, sys
from coditect.agent import program
from coditect.broker.memory import MemoryBroker, MemoryServer
from coditect.registry.memory import MemoryRegistry
from coditect.settings.settings import Settings

program.AmqpBroker = lambda url, *, name, **more: MemoryBroker(MemoryServer(), name=name)
program.RedisRegistry = lambda url: MemoryRegistry()
program.tell_ready = lambda since: os.kill(os.getpid(), signal.SIGTERM)
program.run(sys.argv[1], Settings(log_format="json"))
"""
"""A program that runs the agent of a file on in-memory servers until it is ready."""
SILENCE = """
import logging.config
from coditect import Agent

logging.config.dictConfig({"version": 1, "root": {"level": "CRITICAL", "handlers": []}})
agent = Agent("silent")
"""


def test_agent_whose_file_configures_logs_of_its_own_is_not_silenced(tmp_path: Path) -> None:
    file = tmp_path / "silent.py"
    file.write_text(SILENCE)
    command = [sys.executable, "-c", WHOLE_AGENT, str(file)]

    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)

    assert "The agent is ready" in [json.loads(line)["event"] for line in ran.stderr.splitlines()]


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("it has no text")


@pytest.mark.parametrize("field", [math.nan, [math.inf], {(1, 2): 3}, Unprintable(), [Unprintable()]])
def test_field_that_json_cannot_express_costs_no_line(field: object) -> None:
    stream = configured(log_format="json", amqp_url=AMQP)

    others = {"task_id": "one", "count": 3, "nodes": [{"a": None}], "missing": None, "ok": True}
    logging.getLogger("author").warning("Something odd", extra={"field": field, "url": AMQP, **others})

    (line,) = (json.loads(one, parse_constant=pytest.fail) for one in stream.getvalue().splitlines())
    assert (line["event"], line["level"]) == ("Something odd", "warning")
    assert {name: line[name] for name in others} == others, "the other fields are as they were"
    assert "s3cret" not in stream.getvalue()


@pytest.mark.parametrize("form", ["json", "human"])
def test_no_part_of_a_password_is_shown_in_a_field_that_cannot_be_expressed(form: str) -> None:
    stream = configured(log_format=form, amqp_url=AMQP)

    for field in ({(1, 2): "x" * 60 + SECRET}, {(1, 2): "x" * 1_985 + SECRET + "x" * 9_000}, Unprintable()):
        logging.getLogger("author").warning("Something odd", extra={"field": field})

    assert form == "human" or max(map(len, stream.getvalue().splitlines())) < 2_300
    assert stream.getvalue().count("Something odd") == 3
    assert "s3cre" not in stream.getvalue()
