"""The image that `make image` built: what is in it, and a dispatcher and an agent at work in containers of it.

The containers have a root that is read-only, no capability, and the private servers of this test on the host's loopback
interface. `podman` keeps images and containers below ``.coditect/image``.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from httpx2 import AsyncClient

from coditect import Client
from coditect.local import PrivateServers
from coditect.local.servers import free_ports
from coditect.workflow.documents.file import load_workflow
from tests.servers import ROOT
from tests.support import eventually

pytestmark = pytest.mark.timeout(300)

IMAGE = "localhost/coditect"
FLEET = "localhost/coditect-fleet"
LARGEST_BYTES = 200_000_000
LONGEST_SECONDS = 3.0
STORE = ROOT / ".coditect" / "image"
STARTER = ROOT / "coditect" / "cli" / "local" / "starter"
PODMAN = (
    *("podman", "--root", str(STORE / "store"), "--runroot", str(STORE / "run")),
    *("--runtime", "runc", "--cgroup-manager", "cgroupfs"),
)
CONFINED = (
    *("--read-only", "--read-only-tmpfs=false", "--tmpfs", "/tmp"),
    *("--cap-drop", "all", "--security-opt", "no-new-privileges", "--memory", "256m", "--pids-limit", "200"),
    *("--network", "host", "--ulimit", "nofile=8192:8192", "--ulimit", "nproc=4096:4096"),
    *("--health-interval", "disable"),  # without systemd nothing would ask: the test does
)


def podman(*words: str) -> str:
    done = subprocess.run([*PODMAN, *words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def image() -> dict[str, Any]:
    [inspected] = json.loads(podman("image", "inspect", IMAGE))
    return dict(inspected)


def test_image_is_small(image: dict[str, Any]) -> None:
    print(f"\nimage: {image['Size'] / 1e6:.0f} MB")

    assert image["Size"] < LARGEST_BYTES


def test_image_runs_the_command_line_as_nobody_special_and_asks_for_its_health(image: dict[str, Any]) -> None:
    config = image["Config"]

    assert config["User"] == "10001:10001"
    assert config["Entrypoint"] == ["coditect"]
    assert image["Healthcheck"]["Test"] == ["CMD", "coditect", "doctor", "--health"]
    assert config["Labels"]["org.opencontainers.image.version"] == podman("run", "--rm", *CONFINED, IMAGE, "--version")


def test_nothing_in_the_image_needs_a_shell() -> None:
    root = Path(podman("image", "mount", IMAGE))
    try:
        shells = [root / folder / name for folder in ("bin", "usr/bin") for name in ("sh", "bash", "dash")]
        found = [shell for shell in shells if shell.exists()]
    finally:
        podman("image", "unmount", IMAGE)

    assert not found


class Containers:
    """Containers of one test; all of them see its servers, and the folder of its agents."""

    def __init__(self, servers: PrivateServers, agents: Path) -> None:
        self._servers = servers
        self._agents = agents
        self.mark = f"coditect-{uuid4().hex[:8]}"
        self.ports: dict[str, int] = {}
        """The health port of each container, which is the API's own."""

    @asynccontextmanager
    async def running(self, *words: str, image: str = IMAGE) -> AsyncIterator[str]:
        """A container that runs the image's own entry point with these words, as soon as it was started."""
        (port,) = free_ports(1)
        variables = {
            "CODITECT_AMQP_URL": self._servers.amqp_url,
            "CODITECT_REDIS_URL": self._servers.redis_url,
            "CODITECT_HEALTH_HOST": "127.0.0.1",
            "CODITECT_HEALTH_PORT": str(port),
            "CODITECT_API_PORT": str(port),
            "CODITECT_API_KEYS": "/var/lib/coditect/api-keys",
        }
        environment = [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
        volumes = ["--volume", f"{self.mark}:/var/lib/coditect"]
        if image == IMAGE:
            volumes += ["--volume", f"{self._agents}:/app:ro"]
        name = await asyncio.to_thread(podman, "run", "--detach", *CONFINED, *environment, *volumes, image, *words)
        self.ports[name] = port
        try:
            yield name
            await asyncio.to_thread(podman, "stop", "--time", "30", name)
            ended = await asyncio.to_thread(podman, "wait", name)
            assert ended == "0", await asyncio.to_thread(podman, "logs", name)
        finally:
            await asyncio.to_thread(podman, "rm", "--force", "--time", "5", name)

    @asynccontextmanager
    async def ready(self, *words: str, image: str = IMAGE) -> AsyncIterator[str]:
        """The same, as soon as the image's own health check says that it takes work."""
        async with self.running(*words, image=image) as name:
            await eventually(lambda: asyncio.to_thread(_healthy, name))
            yield name


def _healthy(name: str) -> bool:
    asked = subprocess.run([*PODMAN, "healthcheck", "run", name], capture_output=True, check=False, timeout=60)
    return asked.returncode == 0


@pytest.fixture
def containers(own_servers: PrivateServers, tmp_path: Path) -> Iterator[Containers]:
    agents = tmp_path / "app"
    agents.mkdir()
    (agents / "greeter.py").write_text((STARTER / "greeter.py").read_text())
    agents.chmod(0o755)
    made = Containers(own_servers, agents)
    yield made
    podman("volume", "rm", "--force", made.mark)


def client_of(servers: PrivateServers) -> Client:
    return Client.from_env({"CODITECT_AMQP_URL": servers.amqp_url, "CODITECT_REDIS_URL": servers.redis_url})


async def test_dispatcher_and_agent_in_containers_do_a_workflow(
    containers: Containers, own_servers: PrivateServers
) -> None:
    workflow = load_workflow(STARTER / "greetings.yaml")
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(containers.ready("dispatcher", "run"))
        await stack.enter_async_context(containers.ready("agent", "run", "greeter.py"))
        client = await stack.enter_async_context(client_of(own_servers))
        run = await client.start(workflow, {"names": ["Ada", "Grace"]})

        assert await run.result(timeout="60s") == ["Hello, Ada!", "Hello, Grace!"]


async def test_api_wants_a_key_that_is_made_in_its_container_and_gives_tasks(containers: Containers) -> None:
    task: Any = {"url": "/v1/tasks", "params": {"wait": "30s"}, "json": {"capability": "hello.greet", "input": "Ada"}}
    async with containers.ready("agent", "run", "greeter.py"), containers.ready("api") as name:
        words = ("coditect", "api", "key", "create", "me", "--role", "admin")
        key = await asyncio.to_thread(podman, "exec", name, *words)
        async with AsyncClient(base_url=f"http://127.0.0.1:{containers.ports[name]}") as http:
            dashboard = await http.get("/")
            refused = await http.post(**task)
            done = await http.post(**task, headers={"authorization": f"Bearer {key}"})

    assert (dashboard.status_code, refused.status_code, done.status_code) == (200, 401, 200)
    assert done.json()["value"] == "Hello, Ada!"


async def test_agent_of_the_fleet_finds_in_its_image_what_it_works_with(
    containers: Containers, own_servers: PrivateServers
) -> None:
    async with containers.ready("agent", "run", "agents/reviewer.py", image=FLEET), client_of(own_servers) as client:
        handle = await client.submit("code.review", {"path": "agents/deployment"})
        review = await handle.result(timeout="60s")

    assert review["files"] == len([*(ROOT / "agents" / "deployment").glob("*.py")])


async def test_agent_that_loses_the_broker_is_unhealthy(containers: Containers, own_servers: PrivateServers) -> None:
    async with containers.ready("agent", "run", "greeter.py") as name:
        await own_servers.kill_broker()

        await eventually(lambda: asyncio.to_thread(lambda: not _healthy(name)))


async def test_container_does_its_first_task_within_three_seconds(
    containers: Containers, own_servers: PrivateServers
) -> None:
    async with containers.ready("agent", "run", "greeter.py"):
        pass  # the queues are there from now on
    async with client_of(own_servers) as client:
        handle = await client.submit("hello.greet", "Ada")
        began = time.monotonic()
        async with containers.running("agent", "run", "greeter.py"):
            assert await handle.result(str, timeout="60s") == "Hello, Ada!"
            took = time.monotonic() - began

    print(f"\ncontainer start to first task: {took:.2f} s, load {os.getloadavg()[0]:.1f}")
    assert took < LONGEST_SECONDS
