"""Services of each kind are watched by schedules and healed: a command, a Deployment (by a kubectl that plays one)."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Barrier, Event, Thread
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
from pydantic import ValidationError

from agents.deployment.service import Service, ask_health
from agents.deployment.targets import FolderTarget, KubernetesSpec, KubernetesTarget
from agents.doctors import exclusion, rules, scores
from agents.healer import (
    Health,
    ServiceRequest,
    VerifyRequest,
    WatchRequest,
    detector,
    healer,
    look,
    threads,
    verify,
    watch,
)
from agents.healing import signs, watched
from agents.healing.diagnosis import (
    Bounds,
    Cause,
    ServiceEvidence,
    by_exclusion,
    by_rules,
    by_scores,
    symptoms,
    trouble_of,
)
from agents.healing.signs import HttpSign, LogReader, LogSign, MetricSign
from agents.healing.watched import CommandKind, DeploymentKind, FolderKind, Watched
from coditect import Agent, Context, WorkflowRun
from coditect.errors import InputError, TaskFailed
from coditect.integrations.http.addresses import AllowedHosts
from coditect.integrations.merging import agent as merger
from coditect.operations.coordination.healing import PATTERN, named, unwatch_service, watch_service
from coditect.testing import TestFleet
from coditect.workflow.documents.file import parse_document
from coditect.workflow.patterns.pattern import make_workflow
from coditect.workflow.states import TaskState, WorkflowState
from tests.servers import ROOT
from tests.support import eventually

SHOPCTL = """#!/bin/sh
cd "$(dirname "$0")"
echo "$*" >> calls
case "$1" in
  start) test ! -e broken && touch running || { echo "it is broken" >&2; exit 1; } ;;
  stop) rm -f running ;;
  status) test -e running && echo "it runs" || { echo "it is stopped"; exit 3; } ;;
esac
"""
KUBECTL = f"""#!{sys.executable} -IS
import json, sys
from pathlib import Path
REVISION = "deployment.kubernetes.io/revision"
file = Path(__file__).with_name("cluster.json")
state, words = json.loads(file.read_text()), sys.argv[1:]
state["calls"].append(words)
if "shop" not in words and "deployment/shop" not in words and "replicasets,pods" not in words:
    sys.exit('Error from server (NotFound): deployments.apps "other" not found')
if words[:2] == ["rollout", "undo"]:
    if state["revision"] == 1:
        sys.exit("error: no rollout history found for deployment")
    ending = state["bad"] if state["slow"] else ""
    state |= {{"revision": state["revision"] + 1, "bad": "", "ending": ending, "available": state["wanted"]}}
elif words[:2] == ["rollout", "restart"] or words[0] == "scale":
    state["wanted"] = max(1, state["wanted"])
    state["available"] = state["wanted"]
elif words[1] == "deployment":
    going_on = state["bad"] or state["ending"]
    reason = "ReplicaSetUpdated" if going_on else "NewReplicaSetAvailable"
    progress = {{"type": "Progressing", "status": "True", "reason": reason}}
    print(json.dumps({{
        "metadata": {{"generation": 2, "annotations": {{REVISION: str(state["revision"])}}}},
        "spec": {{"replicas": state["wanted"], "selector": {{"matchLabels": {{"app": "shop"}}}}}},
        "status": {{"observedGeneration": 2, "availableReplicas": state["available"], "conditions": [progress]}},
    }}))
elif words[1] == "replicasets,pods":
    items = []
    for revision, bad in ((state["revision"], state["bad"]), (state["revision"] - 1, state["ending"])):
        labels = {{"pod-template-hash": f"hash-{{revision}}"}}
        about = {{"name": f"shop-{{revision}}", "labels": labels, "annotations": {{REVISION: str(revision)}}}}
        waiting = {{"waiting": {{"reason": bad}}}} if bad else {{"running": {{}}}}
        status = {{"containerStatuses": [{{"state": waiting}}]}}
        items += [{{"kind": "ReplicaSet", "metadata": about}}, {{"kind": "Pod", "metadata": about, "status": status}}]
    print(json.dumps({{"items": items}}))
file.write_text(json.dumps(state))
"""


@pytest.fixture(autouse=True)
def fleet_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODITECT_FLEET_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """The folder of a service that a program runs."""
    program(tmp_path / "shop" / "shopctl", SHOPCTL)
    (tmp_path / "shop" / "running").touch()
    return tmp_path / "shop"


class Cluster:
    """A Deployment `shop`, as the kubectl in a folder plays it."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "cluster.json"
        program(folder / "kubectl", KUBECTL)
        self.change(revision=2, wanted=2, available=2, bad="", ending="", slow=False, calls=[])

    def change(self, **fields: Any) -> None:
        known = json.loads(self._file.read_text()) if self._file.exists() else {}
        draft = self._file.with_suffix(".new")
        draft.write_text(json.dumps(known | fields))
        draft.replace(self._file)

    @property
    def changes(self) -> list[list[str]]:
        calls: list[list[str]] = json.loads(self._file.read_text())["calls"]
        return [call for call in calls if call[0] != "get"]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return Cluster(program(tmp_path / "bin" / "none", "").parent)


# A watch that a schedule keeps going


HEALERS = [detector, healer, rules, scores, exclusion, merger]
SHOP: dict[str, Any] = {"name": "shop", "command": "shop/shopctl"}


async def watched_run(fleet: TestFleet, service: Mapping[str, Any]) -> WorkflowRun:
    """The first run of a watch."""
    return fleet.client.workflows.get(str(await watch_service(fleet.client, service, make_workflow(PATTERN, {}))))


async def settled(fleet: TestFleet, run: WorkflowRun, holds: Callable[[TaskState], bool]) -> None:
    for _ in range(100):
        if holds((await run.look("watch")).state):
            return
        await fleet.advance("1s")
    raise AssertionError("the watch is not as it should be")


async def fixed_by(fleet: TestFleet, run: WorkflowRun) -> Any:
    assert await run.wait(timeout="10m") is WorkflowState.COMPLETED
    return (await run.look("fix_1")).value


async def test_the_service_of_the_example_is_healed_again_and_again_also_after_its_watch_was_killed(
    tmp_path: Path,
) -> None:
    shutil.copytree(ROOT / "examples" / "healing", place := tmp_path / "examples" / "healing")
    shop = CommandKind("examples/healing/shopctl")
    ((name, fields),) = parse_document((place / "heal.yaml").read_bytes()).items()
    shop.remedy(Cause.KILLED)
    try:
        async with TestFleet(HEALERS, stuck_after="1m") as fleet:
            first = await watched_run(fleet, named(name, fields))
            await settled(fleet, first, lambda state: state is TaskState.WORKING)
            fleet.kill("detector")
            os.kill(int((place / "shop.pid").read_text()), signal.SIGKILL)
            await fleet.restart("detector")
            assert await fixed_by(fleet, first) == {"cause": "process_killed", "done": "started it"}

            await fleet.advance("15s")
            second = fleet.client.workflows.get((await fleet.client.schedules.get("heal-shop"))["last_run"])
            await settled(fleet, second, lambda state: state is TaskState.WORKING)
            await fleet.advance("1s")
            with (place / "shop.log").open("a") as log:
                log.write("GET / code 500\n" * 3)
            assert await fixed_by(fleet, second) == {"cause": "named_sign", "done": "restarted it"}
            assert (await second.look("watch")).value["why"].endswith("has new lines like 'Traceback|code 500': 3")

            await unwatch_service(fleet.client, "shop")
            assert [row async for row in fleet.client.schedules.list()] == []
            assert [event.subject for event in fleet.events if event.type == "service.unwell"] == ["shop", "shop"]
    finally:
        subprocess.run([place / "shopctl", "stop"], check=True)


async def test_a_watch_that_a_tick_began_first_is_found(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with TestFleet([detector], stuck_after="1m") as fleet:
        run = fleet.client.schedules.run

        async def late(name: str) -> str | None:
            await fleet.advance("11s")
            return await run(name)

        monkeypatch.setattr(fleet.client.schedules, "run", late)
        workflow = await watched_run(fleet, SHOP)
        assert workflow.id == (await fleet.client.schedules.get("heal-shop"))["last_run"] is not None


async def test_the_vote_of_a_doctor_that_is_not_there_is_not_waited_for(shop: Path) -> None:
    (shop / "running").unlink()
    async with TestFleet([detector, healer, rules, scores, merger], stuck_after="1m") as fleet:
        run = await watched_run(fleet, SHOP)
        assert await fixed_by(fleet, run) == {"cause": "process_killed", "done": "started it"}


@pytest.mark.parametrize("gone", [healer, merger], ids=lambda agent: str(agent.name))
async def test_a_person_is_asked_also_when_an_agent_of_the_healing_is_gone(shop: Path, gone: Agent) -> None:
    (shop / "running").unlink()
    there = [agent for agent in HEALERS if agent is not gone]
    async with TestFleet(there, stuck_after="1m") as fleet:
        run = await watched_run(fleet, SHOP)
        for _ in range(20):
            if asked := [question async for question in fleet.client.approvals.list()]:
                break
            await fleet.advance("1m")
        assert [question.node for question in asked] == ["escalate"]
        await run.cancel()


# The kinds


def test_a_command_starts_and_restarts_a_service_and_says_when_it_cannot(shop: Path) -> None:
    kind = CommandKind("shop/shopctl")
    (shop / "running").unlink()

    assert (kind.glance().running, kind.glance().log) == (False, "it is stopped")
    assert kind.remedy(Cause.KILLED) == "started it"
    assert (kind.examine().running, kind.remedy(Cause.KILLED)) == (True, "nothing: it runs")
    assert kind.remedy(Cause.NAMED) == "restarted it"
    (shop / "broken").touch()
    assert kind.remedy(Cause.NAMED) == "restarted it, in vain: exit 1: it is broken"
    assert (shop / "calls").read_text().split().count("stop") == 2


async def test_a_status_that_hangs_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched, "_COMMAND_SECONDS", 2)
    program(tmp_path / "shop" / "hangs", '#!/bin/sh\nsleep 600 & echo $! > "$0.pid"; wait\n')

    assert CommandKind("shop/hangs").glance().log == "it did not end within 2 s"

    started = int((tmp_path / "shop" / "hangs.pid").read_text())
    await eventually(lambda: not psutil.pid_exists(started) or psutil.Process(started).status() == "zombie")


def test_a_service_manager_gets_the_verb_where_it_wants_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("systemctl", "service"):
        program(tmp_path / "bin" / name, '#!/bin/sh\necho "$0 $*" | sed s,.*/,,\n')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")

    assert CommandKind("systemctl --user shop.service").glance().log == "systemctl status --user shop.service"
    assert CommandKind("systemctl shop").glance().log == "systemctl status shop.service"
    assert CommandKind("systemctl reboot.target").glance().log == "systemctl status reboot.target.service"
    assert CommandKind("service shop").glance().log == "service shop status"


@pytest.mark.parametrize(
    "command", ["/bin/sh", "../up", "shop/shopctl x", "systemctl", "systemctl -H host shop", "shop '", "", "missing"]
)
def test_no_other_program_is_run(command: str) -> None:
    with pytest.raises(InputError):
        CommandKind(command).glance()


BACK = "went back to the revision before"


@pytest.mark.parametrize(
    ("fault", "cause", "done", "change"),
    [
        ({"revision": 3, "bad": "CrashLoopBackOff", "available": 0}, Cause.CONFIGURATION, BACK, "undo"),
        ({"wanted": 0, "available": 0}, Cause.KILLED, "scaled it to one pod", "deployment/shop"),
        ({"available": 0}, Cause.KILLED, "restarted its pods", "restart"),
    ],
)
def test_each_fault_of_a_deployment_has_a_remedy(
    cluster: Cluster, fault: dict[str, Any], cause: Cause, done: str, change: str
) -> None:
    kind = DeploymentKind("shop", "market")
    assert trouble_of(kind.examine(), Bounds()) == ""
    cluster.change(**fault)

    found = symptoms(kind.examine(), Bounds())

    assert (by_rules(found), by_scores(found), by_exclusion(found)) == (cause,) * 3
    assert kind.remedy(cause) == done
    assert trouble_of(kind.examine(), Bounds()) == ""
    assert [(call[1], call[-2:]) for call in cluster.changes] == [(change, ["--namespace", "market"])]


async def test_a_rollout_that_fails_is_undone_by_the_workflow(cluster: Cluster) -> None:
    service = {"name": "shop", "deployment": "shop"}
    cluster.change(revision=3, bad="ImagePullBackOff", available=1)
    async with TestFleet(HEALERS, stuck_after="1m") as fleet:
        run = await fleet.start(make_workflow(PATTERN, {}), {"service": service})
        assert await run.wait(timeout="10m") is WorkflowState.COMPLETED
        assert (await run.look("watch")).value["why"].endswith("pod shop-3 waits: ImagePullBackOff")
        assert (await run.look("fix_1")).value == {"cause": "bad_configuration", "done": BACK}
        assert (await run.look("verify_1")).value == {"well": True, "why": ""}


def test_a_rollout_is_judged_and_undone_once_as_its_state_allows(cluster: Cluster) -> None:
    cluster.change(bad="ContainerCreating", available=0)
    kind = DeploymentKind("shop", "default")

    assert (kind.glance().running, kind.glance().health) == (True, "")
    assert kind.examine().health == "its rollout is not complete: 0 of 2 pods are available"

    cluster.change(revision=1, bad="ImagePullBackOff", available=0)
    kind = DeploymentKind("shop", "default")

    assert kind.glance().configuration == "pod shop-1 waits: ImagePullBackOff"
    assert kind.remedy(Cause.CONFIGURATION) == "nothing: there is no revision to go back to"
    with pytest.raises(InputError, match="no such Deployment"):
        DeploymentKind("other", "default").glance()

    cluster.change(revision=3, bad="ImagePullBackOff", available=1, slow=True)
    kind = DeploymentKind("shop", "default")

    assert [kind.remedy(Cause.CONFIGURATION) for _ in range(2)] == [BACK, "nothing: no rollout fails"]
    assert len(cluster.changes) == 1


# The signs


@contextmanager
def answering(status: int, body: str) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_probe_says_what_is_wrong_with_an_answer_and_waits_for_none_that_never_ends() -> None:
    with answering(503, "busy") as url:
        assert HttpSign(http=url).trouble() == f"{url} answers with status 503"
        assert HttpSign(http=f"{url}?key=a-secret").trouble() == f"{url} answers with status 503"
        assert HttpSign(http=url, status=503, contains="busy").trouble() == ""
        assert HttpSign(http=url, status=503, contains="ok").trouble().endswith("does not contain 'ok'")
    assert HttpSign(http=url).trouble() == f"{url} does not answer: ConnectionRefusedError"

    with dripping() as url:
        assert HttpSign(http=url, within_seconds=0.3).trouble() == f"{url} does not answer: TimeoutError"
    with dripping() as url, pytest.raises(TimeoutError):
        ask_health(int(url.strip("/").rpartition(":")[2]))


@contextmanager
def dripping() -> Iterator[str]:
    """A server that sends a byte of an answer now and then, and never the last one."""
    over = Event()

    def drip(server: socket.socket) -> None:
        connection, _ = server.accept()
        with closing(connection), suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not over.wait(0.05):
                connection.sendall(b"o")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = Thread(target=drip, args=(server,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        finally:
            over.set()
            thread.join()


def test_no_request_is_sent_to_an_address_that_is_not_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="clouds serve credentials"):
        signs._HOSTS.checked("metadata.example", ["169.254.169.254"])
    monkeypatch.setattr(signs, "_HOSTS", AllowedHosts(("*",), private=False))
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(InputError, match="do not allow this address"):
            HttpSign(http=f"http://localhost:{server.getsockname()[1]}/").trouble()
        connection, _ = server.accept()
        with closing(connection):
            assert connection.recv(1) == b""


METRICS = """# HELP queue_depth Messages.
queue_depth{queue="a",host="x"} 7 1700000000000
queue_depth{queue="b"} 120
up 1.0
bad NaN
half NaN
half 7
"""
METRICS += f"long{{{'a' * 1_000_000}}} 7"


@pytest.mark.parametrize(
    ("metric", "bounds", "trouble"),
    [
        ("queue_depth", {"above": 100}, "queue_depth is 120, above 100"),
        ('queue_depth{queue="a"}', {"above": 100}, ""),
        ('queue_depth{queue="a"}', {"above": 100, "below": 10}, 'queue_depth{queue="a"} is 7, below 10'),
        ("up", {"below": 1}, ""),
        ("bad", {"above": 1}, ""),
        ("half", {"above": 1}, "half is 7, above 1"),
        ("half", {"below": 10}, "half is 7, below 10"),
        ("long", {"above": 1}, "has no metric long"),
        ("gone", {"above": 1}, "has no metric gone"),
    ],
)
def test_a_metric_is_held_against_its_bounds(metric: str, bounds: dict[str, float], trouble: str) -> None:
    with answering(200, METRICS) as url:
        found = MetricSign.model_validate({"metric": metric, "url": url, **bounds}).trouble()

    assert found.endswith(trouble)
    assert bool(found) is bool(trouble)


def test_only_new_whole_lines_of_a_log_count_and_another_reader_finds_them(tmp_path: Path) -> None:
    log = tmp_path / "shop.log"
    log.write_text("ERROR of yesterday\n")
    sign = LogSign(log="shop.log", pattern="ERROR|panic", lines=2)
    reader = LogReader.at_end(sign)

    def wrote(text: str) -> str:
        with log.open("a") as file:
            file.write(text)
        return reader.trouble()

    assert (reader.trouble(), wrote("fine\nERROR 1\nERR"), wrote("OR 2")) == ("", "", "")
    assert wrote("\n") == "shop.log has new lines like 'ERROR|panic': 2"
    assert LogReader(sign, reader.since).trouble() == reader.trouble()
    log.write_text("panic\n")  # begun anew
    assert (reader.trouble(), wrote("panic\n")) == ("", "shop.log has new lines like 'ERROR|panic': 2")
    reader = LogReader.at_end(sign.model_copy(update={"within_seconds": 1e-9}))
    assert (wrote("panic\n"), wrote("panic\n")) == ("", "")  # the first was long ago


def test_a_pattern_that_takes_too_long_is_refused_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signs, "_SEARCH_SECONDS", 0.5)
    reader = LogReader(LogSign(log="shop.log", pattern="(a+)+b"), 0)
    (tmp_path / "shop.log").write_text(f"{'a' * 100}\n")

    with pytest.raises(InputError, match="takes too long"):
        reader.trouble()


@pytest.mark.parametrize(
    "sign",
    [
        {"http": "file:///etc/passwd"},
        {"http": "http://a/b c"},
        {"http": "http://user:word@a/"},
        {"http": "http://a:port/"},
        {"log": "a.log", "pattern": "\0"},
        {"log": "a.log", "pattern": "("},
        {"metric": "queue depth", "url": "http://a/", "above": 1},
        {"metric": "queue_depth", "url": "http://a/"},
    ],
)
def test_a_sign_that_cannot_be_is_refused(sign: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Watched.model_validate({"name": "a", "folder": "a", "signs": [sign]})


@pytest.mark.parametrize("kind", [{}, {"folder": "x", "command": "y"}, {"deployment": "--all"}])
def test_a_service_is_of_one_kind(kind: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Watched.model_validate({"name": "a", **kind})


# What the agents remember of a service


class Remembering:
    """A context with the record of one service, which keeps what was emitted."""

    lifespan = None

    def __init__(self, **record: Any) -> None:
        self.task_id, self.record, self.emitted = "task-1", record, list[str]()
        self.released: Callable[[], object] = lambda: None
        """What a release does that has the lock until then."""

    @asynccontextmanager
    async def lock(self, _: str) -> AsyncIterator[None]:
        self.released()
        yield

    def state(self, _: str) -> Remembering:
        return self

    async def get(self, _: str) -> dict[str, Any]:
        return self.record

    async def merge(self, _: str, patch: dict[str, Any]) -> None:
        self.record |= patch

    async def emit(self, type_: str, *, subject: str, **data: Any) -> None:
        self.emitted.append(f"{type_} {subject}: {data['trouble']}")

    @property
    def as_context(self) -> Context:
        return cast(Context, self)


SERVICE = Watched.model_validate({**SHOP, "every_seconds": 0.1})


async def watched_for(ctx: Remembering, hours: float) -> Health:
    return await watch(WatchRequest(service=SERVICE, hours=hours), ctx.as_context)


async def test_a_service_that_was_left_to_a_person_is_not_unwell_again_before_it_was_well(shop: Path) -> None:
    ctx = Remembering(open=True)
    (shop / "running").unlink()
    left = await watched_for(ctx, 0.3 / 3_600)
    silent = (dict(ctx.record), [*ctx.emitted])
    (shop / "running").touch()
    mended = await watched_for(ctx, 0.3 / 3_600)
    closed = dict(ctx.record)
    (shop / "running").unlink()
    unwell = await watched_for(ctx, 1)

    assert (left.well, silent) == (True, ({"open": True}, []))
    assert (mended.well, closed) == (True, {"open": False})
    assert (unwell.well, ctx.emitted) == (False, ["service.unwell shop: its process is gone: it is stopped"])


async def test_a_service_that_is_released_meanwhile_is_not_unwell(shop: Path) -> None:
    ctx = Remembering()
    (shop / "running").unlink()
    ctx.released = (shop / "running").touch

    assert await watched_for(ctx, 0.5 / 3_600) == Health(well=True, why="")
    assert ctx.emitted == []


async def test_a_line_of_a_log_counts_once_also_to_the_next_watch(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, log = [0.0], shop / "shop.log"
    monkeypatch.setattr(signs, "time", SimpleNamespace(monotonic=lambda: now[0]))
    two, panic = (
        LogSign(log="shop/shop.log", pattern=pattern, lines=lines) for pattern, lines in (("ERROR", 2), ("panic", 1))
    )
    request = WatchRequest(service=SERVICE.model_copy(update={"signs": [two, panic]}))
    ctx = Remembering()
    log.write_text("panic of yesterday\n")

    def noted(*, later_seconds: float = 0.0) -> bool:
        now[0] += later_seconds
        return bool(ctx.record.get("logs", {}).get(two.key) == log.stat().st_size)

    for _ in range(3):
        watching = asyncio.create_task(watch(request, ctx.as_context))
        await eventually(noted)
        watching.cancel()  # as with the death of its agent
        with log.open("a") as file:
            file.write("ERROR\n")  # which the next watch reads
        watching = asyncio.create_task(watch(request, ctx.as_context))
        await eventually(partial(noted, later_seconds=two.within_seconds + 1))
        assert not watching.done()
        watching.cancel()
    with log.open("a") as file:
        file.write("panic\n")

    assert (await watch(request, ctx.as_context)).why == "shop/shop.log has new lines like 'panic': 1"
    assert ctx.record["logs"] == {two.key: log.stat().st_size, panic.key: log.stat().st_size - len("panic\n")}


async def test_a_thread_waits_for_each_of_many_services() -> None:
    all_wait = Barrier(64)
    async with threads(detector) as pool:
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.run_in_executor(pool, all_wait.wait, 30) for _ in range(64)))


def test_a_release_and_a_remedy_have_the_same_lock(tmp_path: Path) -> None:
    rollout = KubernetesTarget(KubernetesSpec(deployment="shop", namespace="live", image="shop"))

    assert rollout.name == DeploymentKind("shop", "live", "a-context").lock
    assert FolderTarget(Service(tmp_path)).name == FolderKind(Service(tmp_path)).lock


@pytest.mark.parametrize(
    ("age_seconds", "why"),
    [(1.0, ""), (60.0, "it does not answer; http://127.0.0.1:1/ does not answer: ConnectionRefusedError")],
)
async def test_a_process_that_has_just_been_started_may_be_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age_seconds: float, why: str
) -> None:
    silent = ServiceEvidence(running=True, answers=False, health="it does not answer", age_seconds=age_seconds)
    monkeypatch.setattr(watched, "glance", lambda _: silent)
    service = Watched(name="shop", folder=str(tmp_path), signs=[HttpSign(http="http://127.0.0.1:1/")])

    assert (await look(ServiceRequest(service=service), Remembering().as_context)).why == why
    assert service.kind.remedy(Cause.RELEASE) == "nothing: its version does not answer with errors"


async def test_a_look_says_what_is_wrong_and_a_service_healed_three_times_is_left_to_a_person(shop: Path) -> None:
    sign = HttpSign(http="http://127.0.0.1:1/")
    with_probe = SERVICE.model_copy(update={"signs": [sign]})

    assert await look(ServiceRequest(service=SERVICE), Remembering().as_context) == Health(well=True, why="")
    seen = await look(ServiceRequest(service=with_probe), Remembering().as_context)
    assert seen.why.startswith("http://127.0.0.1:1/ does not answer")
    async with TestFleet([detector]) as fleet:
        with pytest.raises(TaskFailed, match="no folder of a service"):
            await fleet.request("service.look", {"service": {"name": "a", "folder": "nothing"}})

    ctx = Remembering()

    ends = [await verify(VerifyRequest(service=SERVICE), ctx.as_context) for _ in range(4)]

    assert [one.well for one in ends] == [True, True, True, False]
    assert ends[-1].why == "it was healed 3 times within 10 minutes"
