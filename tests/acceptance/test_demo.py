"""The demo as a person runs it: `make demo` is this command."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import psutil
import pytest

from agents.demo.goal import AUTONOMY
from agents.demo.summary import NEXT

ROOT = Path(__file__).resolve().parents[2]
MARK = "DEMO_UNDER_TEST"

pytestmark = [pytest.mark.servers, pytest.mark.proof]


@contextmanager
def demo(mark: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "agents.demo", *options],
        cwd=ROOT,
        env={**os.environ, MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def running(mark: str) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def numbers(pattern: str, text: str) -> list[int]:
    found = re.search(pattern, text)
    assert found is not None, text
    return [int(number) for number in found.groups()]


@pytest.mark.timeout(1_200)
def test_demo_is_killed_amid_its_work_loses_nothing_and_stops_everything() -> None:
    mark = uuid.uuid4().hex

    with demo(mark) as process:
        text, _ = process.communicate()

    completed, processes = numbers(r"(\d+) tasks completed by (\d+) agent processes", text)
    at_once, failed, lost = numbers(r"(\d+) handlers at work at one instant, (\d+) tasks failed, (\d+) lost", text)
    assert process.returncode == 0, text
    assert (completed > 100, processes >= 5, at_once >= 100, failed, lost) == (True, True, True, 0, 0), text
    assert re.search(r"Workflow repository: completed in \d+\.\d s, \d+ tasks\n  1  packages +completed", text), text
    assert numbers(r"\n  2  review +completed .* code\.review, (\d+) times", text)[0] >= 25, text
    assert text.index("KILLED reviewer-1 with -9") < text.index("Workflow repository is accepted")
    assert text.index("KILLED RabbitMQ with -9") < text.index("RabbitMQ is back") < text.index("repository: completed")
    assert re.search(r"text\.summarize of README\.md, answered:\n  summary +\S.*\n", text), text
    assert not re.search(r"\.py:\d+ \w+ ", text), "the findings of a review of this repository are nobody's concern"
    check_goal(text[text.index("$ coditect workflow start --goal") :])
    assert NEXT in text
    assert "The dashboard is at http://127.0.0.1:" in text
    assert "asks: Publish this release?  Granted by the demo" in text
    assert running(mark) == []


def check_goal(text: str) -> None:
    """Check that the demo ends with a goal done by four kinds of agents, and with the autonomy rate."""
    kinds = "Python", "a command", "an MCP server", "Markdown, and a stand-in for a language model"
    assert {kind for kind in kinds if re.search(rf"\n  \w+ +[\w.-]+ +[\w-]+ +{kind}\n", text)} == set(kinds), text
    assert re.search(r"\n  \| Release notes of 20\d\d-\d\d-\d\d\n(  \| \* .+\n){1,3}  \| \d+ files reviewed", text), (
        text
    )
    autonomy = text[text.index("$ coditect approval audit --autonomy") :]
    assert re.search(r"\nall workflows +50\.0% +2 +2 +1\n", autonomy), text
    assert AUTONOMY in autonomy, text
    assert re.search(r"\ngranted .* ship_it +the demo", autonomy), text


@pytest.mark.endurance
def test_interrupted_demo_stops_everything() -> None:
    mark = uuid.uuid4().hex

    with demo(mark) as process:
        assert process.stdout is not None
        assert any("running" in line for line in process.stdout)
        while_working = running(mark)
        process.send_signal(signal.SIGINT)
        text = process.stdout.read()

    assert len(while_working) > 5
    assert process.returncode == 130, text
    assert "Traceback" not in text
    assert running(mark) == []


@pytest.mark.endurance
def test_kept_demo_serves_its_dashboard_until_it_is_interrupted() -> None:
    mark = uuid.uuid4().hex

    with demo(mark, "--keep") as process:
        assert process.stdout is not None
        address = next(
            found[0] for line in process.stdout if (found := re.findall(r"stays up.* (http://[\d.:]+/#\S+);", line))
        )
        url, _, key = address.partition("#/fleet?key=")
        asked = Request(f"{url}v1/agents", headers={"Authorization": f"Bearer {key}"})
        with urlopen(url) as page, urlopen(asked) as agents:
            shown, listed = page.read().decode(), json.load(agents)
        process.send_signal(signal.SIGINT)
        text = process.stdout.read()

    assert process.returncode == 0, text
    assert "<title>Coditect" in shown
    assert {one["name"] for one in listed} >= {"reviewer", "tester"}
    assert "Everything is stopped again" in text
    assert running(mark) == []
