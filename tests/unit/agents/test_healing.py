"""What heals a service, on a real till: evidence of each real fault, three methods for its cause, and the remedies."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import psutil
import pytest

from agents.demo.healing.faults import FAULTS, break_all_versions, injected, kill
from agents.demo.healing.runs import DOCTORS, HealingOrder, HealingRun, Round, describe_all, describe_run, fixed_share
from agents.demo.healing.ward import ORDERS, TILL, ask, orders_of, running_till
from agents.deployment.service import Service
from agents.healing.diagnosis import (
    Bounds,
    Cause,
    ServiceEvidence,
    Symptom,
    by_exclusion,
    by_rules,
    by_scores,
    examine,
    glance,
    remedy,
    symptoms,
    trouble_of,
)
from coditect.operations.coordination.healing import PATTERN
from coditect.workflow.patterns.pattern import make_workflow
from coditect.workflow.render import draw_mermaid
from tests.servers import ROOT
from tests.support import patient

BOUNDS = Bounds()
CAUSES = {
    "process killed": Cause.KILLED,
    "bad configuration": Cause.CONFIGURATION,
    "port taken": Cause.PORT,
    "log flood": Cause.FLOOD,
    "event loop hung": Cause.HUNG,
    "memory leak": Cause.LEAK,
    "open files": Cause.FILES,
    "process frozen": Cause.FROZEN,
    "cache damaged": Cause.CACHE,
    "bad release": Cause.RELEASE,
}
WELL = ServiceEvidence(version="v1", running=True, memory_mib=20, free_mib=3)


@pytest.fixture
def till(tmp_path: Path) -> Iterator[Service]:
    with running_till(tmp_path / "till") as service:
        yield service


def seen(service: Service, holds: Callable[[ServiceEvidence], object]) -> ServiceEvidence:
    """Examine a service until the evidence holds, which a fault needs a moment for."""
    end = time.monotonic() + 15
    while not holds(evidence := examine(service)):
        assert time.monotonic() < end, evidence
    return evidence


def only_process(service: Service) -> psutil.Process:
    """Return the process of a service that runs once, and answers."""
    service.probe("v1", within_seconds=20)
    process = service.process()
    assert process is not None
    assert processes_of(service) == [process.pid]
    return process


def well(evidence: ServiceEvidence) -> bool:
    return not trouble_of(evidence, BOUNDS)


def processes_of(service: Service) -> list[int]:
    """Return every process that runs a version of the service."""
    place, found = str(service.folder.resolve()), []
    for process in psutil.process_iter(["cwd", "status"]):
        if (process.info["cwd"] or "").startswith(f"{place}/") and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


@pytest.mark.parametrize("kind", CAUSES)
def test_a_real_fault_is_seen_its_cause_found_by_each_method_and_mended_by_its_remedy(kind: str, till: Service) -> None:
    assert well(examine(till))

    with injected(kind, till, Random(4)):
        evidence = seen(till, lambda one: not well(one))
        found = symptoms(evidence, BOUNDS)
        done = remedy(till, by_rules(found))
        after = seen(till, well)

    assert (by_rules(found), by_scores(found), by_exclusion(found)) == (CAUSES[kind],) * 3
    assert not done.startswith("nothing")
    assert trouble_of(glance(till), BOUNDS) == ""
    assert (after.port_owner, orders_of(till), len(processes_of(till))) == ("service", ORDERS, 1)


@pytest.mark.parametrize("seed", range(3))
def test_each_kind_of_bad_settings_is_refused_by_the_check_and_gone_back_from(seed: int, till: Service) -> None:
    with injected("bad configuration", till, Random(seed)):
        evidence = examine(till)
        done = remedy(till, Cause.CONFIGURATION)

    assert evidence.configuration
    assert (till.version, done) == ("v1", "went back to version v1")
    assert seen(till, well)
    assert remedy(till, Cause.CONFIGURATION) == "nothing: its process runs"


def test_a_bad_release_is_never_answered_by_a_later_one(tmp_path: Path) -> None:
    service = Service(tmp_path / "service")
    service.release_folder("v1").parent.mkdir(parents=True)
    for version in ("v1", "v2", "v3"):
        service.install(version, TILL)
    link = service.folder / "current"
    link.symlink_to(Path("releases") / "v2")

    assert (service.releases(), service.earlier_releases()) == (["v3", "v2", "v1"], ["v1"])
    link.unlink()
    link.symlink_to(Path("releases") / "v1")
    assert service.earlier_releases() == []
    assert remedy(service, Cause.RELEASE).startswith("nothing: ")


SERVER = """
import json, os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
{imports}

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({{"version": os.environ["SERVICE_VERSION"], "total": total([1])}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

{begin}
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
TOTAL = "def total(prices):\n    return sum(prices)\n"
CHECKED = "os.environ['SERVICE_VERSION']\nif sys.argv[1] == '--check': sys.exit(0 if total([1]) else 'no total')\n"
SHAPES = {
    "one file, no check": {"app.py": SERVER.format(imports=TOTAL, begin="")},
    "two files": {"app.py": SERVER.format(imports="from other import total", begin=CHECKED), "other.py": TOTAL},
    "two files, no check": {"app.py": SERVER.format(imports="from other import total", begin=""), "other.py": TOTAL},
    "a package and a requirements file": {
        "app.py": SERVER.format(imports="import installed\nfrom shop.prices import total", begin=CHECKED),
        "shop/__init__.py": "",
        "shop/prices.py": "from .sums import total\n",
        "shop/sums.py": TOTAL,
        "requirements.txt": "installed==1.0\n",
    },
}


def test_the_demo_s_service_needs_each_of_its_files(tmp_path: Path) -> None:
    names = {path.name for path in TILL.glob("*.py")} - {"app.py"}
    service = Service(tmp_path / "service")
    service.release_folder("v1").parent.mkdir(parents=True)
    service.install("v1", TILL)

    assert service.refusal("v1") == ""
    assert names, "app.py alone"
    for name in names:
        file = service.release_folder("v1") / name
        text = file.read_text()
        file.unlink()
        assert "ModuleNotFoundError" in service.refusal("v1")
        file.write_text(text)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_service_of_any_files_is_checked_as_it_runs_and_healed(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "installed.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"))  # beside the agent, and so beside the service
    for name, text in SHAPES[shape].items():
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / name).write_text(text)
    service = Service(tmp_path / "service")
    service.release_folder("v1").parent.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        (service.folder / "port").write_text(str(free.getsockname()[1]))
    service.install("v1", tmp_path / "files")
    try:
        service.switch("v1")
        service.probe("v1", within_seconds=patient(20))
        assert examine(service).configuration == ""

        kill(service, Random(0))
        found = symptoms(examine(service), BOUNDS)

        assert (by_rules(found), by_scores(found), by_exclusion(found)) == (Cause.KILLED,) * 3
        assert remedy(service, Cause.KILLED) == "started it"
        service.probe("v1", within_seconds=patient(20))
    finally:
        service.stop(patience_seconds=1)


def test_a_wrong_remedy_leaves_the_service_unwell_and_its_other_versions_and_orders_as_they_are(till: Service) -> None:
    with injected("bad configuration", till, Random(0)):
        for cause in (Cause.KILLED, Cause.HUNG, Cause.DISK, Cause.PORT, Cause.NONE):
            remedy(till, cause)
            assert not well(examine(till))

        assert (till.version, orders_of(till)) == ("v2", ORDERS)


def test_what_nobody_can_mend_is_said_and_not_hidden(till: Service) -> None:
    break_all_versions(till)

    assert remedy(till, Cause.CONFIGURATION) == "nothing: no other version has a configuration that is sound"
    assert "its configuration is refused: json.decoder.JSONDecodeError" in trouble_of(examine(till), BOUNDS)


def test_a_full_disk_is_told_from_other_failures_and_loses_its_cache_but_no_link(till: Service, tmp_path: Path) -> None:
    full = WELL.model_copy(update={"free_mib": 0.0, "health": "its health check fails: status 503"})
    cache = till.folder / "data" / "cache"
    cache.mkdir()
    (cache / "export-1").write_bytes(b".")

    found = symptoms(full, BOUNDS)
    done = remedy(till, Cause.DISK)

    assert (by_rules(found), by_scores(found), by_exclusion(found)) == (Cause.DISK,) * 3
    assert (done, [*cache.iterdir()], orders_of(till)) == ("deleted 1 files of its cache", [], ORDERS)
    assert "its disk has 0.0 MiB left" in trouble_of(full, BOUNDS)

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (cache / "link").symlink_to(elsewhere)

    assert remedy(till, Cause.CACHE).startswith("deleted ")
    assert ([*cache.iterdir()], [*elsewhere.iterdir()]) == ([], [elsewhere / "kept"])


def test_a_process_that_moves_in_at_the_port_is_not_ended(till: Service) -> None:
    before = till.port

    with injected("port taken", till, Random(0)):
        evidence = examine(till)
        remedy(till, Cause.PORT)
        seen(till, well)
        assert evidence.port_owner == "other"
        assert till.port != before
        connection_refused = subprocess.run(
            [sys.executable, "-c", f"import socket; socket.create_connection(('127.0.0.1', {before}), 2)"], check=False
        )
    assert connection_refused.returncode == 0  # the other one still listens


def test_a_service_whose_starter_is_killed_is_known_and_has_one_process(till: Service) -> None:
    till.stop()
    program = f"""
from pathlib import Path
from agents.deployment.service import Service
Service(Path({str(till.folder)!r})).restart()
"""
    for delay in (0.0, 0.05, 0.2):
        starter = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
        time.sleep(delay)  # the instant of the kill is what is drawn
        starter.send_signal(signal.SIGKILL)
        starter.wait()
        remedy(till, Cause.KILLED)

        assert only_process(till)

    till.stop()
    late = f"""
from pathlib import Path
from agents.deployment import service
service._LAUNCH = "import time; print('launching', flush=True); time.sleep(0.5)" + service._LAUNCH
service.Service(Path({str(till.folder)!r})).restart()
"""
    with subprocess.Popen([sys.executable, "-c", late], cwd=ROOT, stdout=subprocess.PIPE) as slow:
        assert slow.stdout is not None
        slow.stdout.readline()
        slow.kill()
    remedy(till, Cause.KILLED)

    assert only_process(till)


def test_a_service_that_ended_and_is_not_buried_is_not_waited_for(till: Service) -> None:
    till.stop()
    program = f"""
import ctypes
from pathlib import Path
from agents.deployment.service import Service
assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER: the service's end is left to this process
service = Service(Path({str(till.folder)!r}))
service.restart()
service.probe("v1", within_seconds=20)
process = service.process()
service.stop()
assert process.status() == "zombie" and service.process() is None
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


def test_a_service_belongs_to_the_fleet_and_may_be_gone(till: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODITECT_STARTED_BY", "fleet:healer-1:")

    till.restart()

    assert only_process(till).environ()["CODITECT_STARTED_BY"] == "fleet:service:"

    till.stop()
    ask(till, "/order")

    assert orders_of(till) == ORDERS
    assert till.refusal("v1") == ""


@pytest.mark.parametrize(
    ("found", "cause"),
    [
        (set(), Cause.NONE),
        ({Symptom.FAILING, Symptom.REFUSED}, Cause.CONFIGURATION),
        ({Symptom.GONE, Symptom.TAKEN, Symptom.FAILING}, Cause.PORT),
        ({Symptom.GONE, Symptom.FULL}, Cause.DISK),
        ({Symptom.LARGE, Symptom.SILENT}, Cause.LEAK),
        ({Symptom.STOPPED, Symptom.SILENT}, Cause.FROZEN),
        ({Symptom.FAILING, Symptom.WORSE, Symptom.REFUSED}, Cause.CONFIGURATION),
        ({Symptom.FAILING, Symptom.WORSE, Symptom.FULL}, Cause.DISK),
        ({Symptom.FAILING, Symptom.WORSE, Symptom.SPOILED}, Cause.CACHE),
        ({Symptom.NAMED}, Cause.NAMED),
        ({Symptom.NAMED, Symptom.GONE}, Cause.KILLED),
        ({Symptom.NAMED, Symptom.SILENT}, Cause.HUNG),
    ],
)
def test_the_methods_agree_on_mixed_findings(found: set[Symptom], cause: Cause) -> None:
    given = frozenset(found)

    assert (by_rules(given), by_scores(given), by_exclusion(given)) == (cause,) * 3


def test_the_runs_of_a_seed_are_the_same_and_all_kinds_are_equally_often() -> None:
    kinds = HealingOrder(seed=5, runs=60, at_once=1).kinds()

    assert kinds == HealingOrder(seed=5, runs=60, at_once=4).kinds() != HealingOrder(seed=6, runs=60, at_once=1).kinds()
    assert {kinds.count(kind) for kind in set(kinds)} == {60 // len(set(kinds))}
    assert set(kinds) <= FAULTS.keys()


def test_the_report_names_what_was_not_fixed() -> None:
    votes = (Round(("hung", "hung", "log_flood"), "hung", "restarted it", ""),)
    runs = [HealingRun(number, "event loop hung", number / 10, votes, "") for number in range(1, 20)]
    bad = HealingRun(20, "port taken", 60, (), "the workflow is running, the escalation awaiting_approval", "w-20")

    told = describe_all([*runs, bad], seconds=9)

    assert "event loop hung    19     19    1.0    1.9" in told
    assert "not fixed: run 20, port taken: the workflow is running, the escalation awaiting_approval (w-20)" in told
    assert "95% fixed without a person, in 9 s" in told
    assert fixed_share([*runs, bad]) == 0.95
    assert "round 1: votes hung, hung, log_flood -> hung: restarted it" in describe_run(runs[0])
    assert "NOT FIXED" in describe_run(bad)


def test_the_picture_of_the_page_is_the_pattern() -> None:
    flow = make_workflow(PATTERN, {"rounds": 2})

    assert draw_mermaid(flow).strip() in (ROOT / "docs" / "self-healing.md").read_text()
    assert len(DOCTORS) == 3
