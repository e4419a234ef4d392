"""What any test may ask for: the servers of the run, and settings and names of the test's own.

Every fixture here is plain (not a coroutine), so that an async fixture can ask for it, too.
"""

from __future__ import annotations

import gc
import os
import signal
from collections import Counter
from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from coditect.aio.loop import collect_rarely
from coditect.settings.settings import Settings
from coditect.testing import servers as servers_plugin
from tests.broken_broker import look_at_brokers, run
from tests.fdb_cluster import STORE_VARIABLE, clear_subspaces, put_in_place
from tests.rerun import Impure, every_function_runs_twice, runs_twice
from tests.servers import STARTUP, Servers, breakable, own_servers, servers

if str(STARTUP) not in (searched := os.environ.get("PYTHONPATH", "").split(os.pathsep)):
    os.environ["PYTHONPATH"] = os.pathsep.join([str(STARTUP), *filter(None, searched)])
if store := os.environ.get(STORE_VARIABLE):  # at once: the conftest files of folders import the store before any hook
    put_in_place(store)

Result = TypeVar("Result")
IMPURE = pytest.StashKey[list[Impure]]()
__all__ = ["amqp_url", "breakable", "capability", "own_servers", "redis_url", "servers", "settings"]

ELSEWHERE = {
    "tests/languages": ("make languages", "CODITECT_LANGUAGES"),
    "tests/deploy/test_image.py": ("make image", "CODITECT_IMAGE"),
    "tests/cluster": ("make cluster-test", "CODITECT_CLUSTER"),
    "tests/k8s": ("make k8s-test", "CODITECT_KUBERNETES"),
}
"""The tests that another target runs, that target, and the variable by which it has them collected."""

# How long an example takes says something about the machine, not about the code. Each run draws others.
for name, examples in (("whole", 30), ("quick", 10)):
    hypothesis_settings.register_profile(
        name, max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
hypothesis_settings.load_profile("whole")


def pytest_configure() -> None:
    """A run that a shell put in the background has SIGINT ignored, its children inherit that: Ctrl-C is tested."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header(config: pytest.Config) -> str | None:
    """Which servers the run takes, if it takes any."""
    return None if "not servers" in config.option.markexpr else servers_plugin.pytest_report_header()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which tests the run skipped, by reason, and which other targets have."""
    reasons = Counter(_why_skipped(report) for report in terminalreporter.stats.get("skipped", []))
    is_whole = terminalreporter.config.args_source is pytest.Config.ArgsSource.TESTPATHS
    absent = {folder: target for folder, (target, runs) in ELSEWHERE.items() if is_whole and not os.environ.get(runs)}
    if reasons or absent:
        terminalreporter.section("skipped, and why")
    for why, count in reasons.most_common():
        terminalreporter.line(f"{count:4}  {why}")
    for folder, target in absent.items():
        terminalreporter.line(f" all  of {folder}: `{target}` runs them")


def _why_skipped(report: pytest.TestReport) -> str:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Result, Result]:
    """See `tests/rerun.py`."""
    twice = runs_twice(item.path) and item.get_closest_marker("once") is None
    running: AbstractContextManager[list[Impure]] = every_function_runs_twice() if twice else nullcontext([])
    with running as found:
        item.stash[IMPURE] = found
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Result, Result]:
    """What the dispatcher's loops healed is a fault all the same."""
    done = yield
    clear_subspaces()
    for impure in item.stash[IMPURE]:
        raise impure
    return done


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """See `tests/broken_broker.py`."""
    report = yield
    if report.failed:
        look_at_brokers(item, report)
    return report


@pytest.hookimpl(tryfirst=True, specname="pytest_runtest_protocol")
def pytest_once_more_on_a_new_broker(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """See `tests/broken_broker.py`."""
    return run(item, nextitem) or None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What may take longest begins first, on half of the workers: most of it is whole fleets on two processors.

    So no worker is left with it alone when the others have ended. Workers take equal parts of the list, of what is
    left when a run's `-m` has taken its part away: hence last.
    """
    items.sort(key=lambda one: -(marker.args[0] if (marker := one.get_closest_marker("timeout")) else 0))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    first = sum(one.get_closest_marker("timeout") is not None for one in items)
    long, short, size = items[:first], items[first:], len(items) // workers
    items.clear()
    for worker in range(workers):
        share = long[worker // 2 :: (workers + 1) // 2] if worker % 2 == 0 else []
        items += share + short[: size - len(share)]
        del short[: size - len(share)]
    items += short


def pytest_collection_finish() -> None:
    """Ten thousand tests and their modules stay until the end: the garbage collector need not look at them again.

    What else there is it collects as rarely as in the programs, so a test that waits for a collection asks for one.
    """
    gc.collect()
    collect_rarely()


@pytest.fixture
def amqp_url(servers: Servers) -> str:
    """The run's RabbitMQ: no path, so vhost `/`. A test uses names of its own there and flushes nothing."""
    return servers.amqp_url


@pytest.fixture
def redis_url(servers: Servers) -> str:
    """The run's Redis. A test uses a key prefix of its own there and flushes nothing."""
    return servers.redis_url


@pytest.fixture
def settings(servers: Servers, tmp_path: Path) -> Settings:
    """Settings of a program on the run's servers."""
    return Settings(
        amqp_url=servers.amqp_url,
        redis_url=servers.redis_url,
        drain_seconds=5.0,
        workspace=str(tmp_path),
        log_level="WARNING",
    )


@pytest.fixture
def capability() -> str:
    """A capability that no other test has."""
    return f"t{uuid4().hex[:12]}.work"
