"""RabbitMQ and Redis as `production` has them: by TLS only, and with a user for each role that its manifests define."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

Manifest = dict[str, Any]


def certificate(folder: Path) -> ssl.SSLContext:
    """Make an authority, `ca.crt`, and what a server of this machine shows, `tls.crt` and `tls.key`; use the latter."""
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    own = ["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1"]
    own += ["-addext", "basicConstraints=CA:FALSE"]
    for name, more in {"ca": [], "tls": own}.items():
        to = ["-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.crt"]
        subprocess.run([*made, *more, *to], cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return context


@contextmanager
def behind_tls(port: int, context: ssl.SSLContext) -> Iterator[int]:
    """Yield a port that takes TLS and hands what comes to another port of this machine."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with ExitStack() as ended, suppress(OSError):
            ended.callback(writer.transport.abort)
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
            ended.callback(inner_writer.transport.abort)
            await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    async def run() -> None:
        ended = asyncio.Event()
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        end = partial(asyncio.get_running_loop().call_soon_threadsafe, ended.set)
        started.put((server.sockets[0].getsockname()[1], end))
        await ended.wait()
        server.close()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)

    started: Queue[tuple[int, Callable[[], object]]] = Queue()
    thread = Thread(target=asyncio.run, args=(run(),))
    thread.start()
    taken, end = started.get(timeout=30)
    try:
        yield taken
    finally:
        end()
        thread.join(30)


def give(url: str, objects: list[Manifest], passwords: Mapping[str, str]) -> None:
    """Do at RabbitMQ's management API what its Topology Operator does with its objects."""
    for one in objects:
        spec, vhost = one["spec"], quote(one["spec"].get("vhost", "/"), safe="")
        match one["kind"]:
            case "User":
                body = {"password": passwords[one["metadata"]["name"]], "tags": ",".join(spec.get("tags", ()))}
                _send(url, "PUT", f"users/{one['metadata']['name']}", body)
            case "Permission":
                _send(url, "PUT", f"permissions/{vhost}/{spec['userReference']['name']}", spec["permissions"])
            case "Exchange":
                _send(url, "PUT", f"exchanges/{vhost}/{spec['name']}", _kept(spec) | {"type": spec["type"]})
            case "Queue":
                _send(url, "PUT", f"queues/{vhost}/{spec['name']}", _kept(spec, {"x-queue-type": spec["type"]}))
            case "Binding":
                ends = f"e/{spec['source']}/q/{spec['destination']}"
                _send(url, "POST", f"bindings/{vhost}/{ends}", {"routing_key": spec["routingKey"]})


def _kept(spec: Manifest, more: Manifest | None = None) -> Manifest:
    return {"durable": True, "arguments": spec.get("arguments", {}) | (more or {})}


def _send(url: str, method: str, path: str, body: Manifest) -> None:
    parts = urlsplit(url)
    signed = b64encode(f"{parts.username}:{parts.password}".encode()).decode()
    headers = {"Authorization": f"Basic {signed}", "Content-Type": "application/json"}
    to = f"http://{parts.hostname}:{parts.port}/api/{path}"
    with urlopen(Request(to, json.dumps(body).encode(), headers, method=method), timeout=30):
        pass
