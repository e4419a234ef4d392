"""Creates the Secrets of RabbitMQ, Redis and the HTTP API's keys, unless they are there. Runs once, in a Job.

RabbitMQ's has the name and keys that its Cluster Operator gives it, so that the fleet reads the same with both. The
API's has the file of hashes, which alone the API gets, and beside it the key of `admin`.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import sys
from datetime import UTC, datetime
from http import HTTPStatus
from http.client import HTTPSConnection
from pathlib import Path
from secrets import token_urlsafe

from coditect.api.access import KeyFile, Role

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
SECONDS = 30


def main() -> None:
    """Create each Secret; one that is there stays as it is."""
    namespace = (ACCOUNT / "namespace").read_text()
    secrets = {
        "rabbitmq-default-user": {"username": "coditect", "password": token_urlsafe(24)},
        "redis": {"password": token_urlsafe(24)},
        "api-keys": api_keys(),
    }
    for name, values in secrets.items():
        sys.stdout.write(f"{name}: {create(namespace, name, values)}\n")


def api_keys() -> dict[str, str]:
    """Return a file of keys with the one of `admin`, and that key."""
    file = Path("/tmp/api-keys")  # noqa: S108 - the pod's own
    key = KeyFile(file).create("admin", Role.ADMIN, made_at=datetime.now(UTC).isoformat(timespec="seconds"))
    return {"api-keys": file.read_text(), "admin": key}


def create(namespace: str, name: str, values: dict[str, str]) -> str:
    """Return "created", or "there already"; any other answer of the API server ends the Job, which tries again."""
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/part-of": "coditect"}},
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items()},
    }
    server = HTTPSConnection(
        os.environ["KUBERNETES_SERVICE_HOST"],
        int(os.environ["KUBERNETES_SERVICE_PORT"]),
        context=ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt")),
        timeout=SECONDS,
    )
    headers = {"Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}", "Content-Type": "application/json"}
    server.request("POST", f"/api/v1/namespaces/{namespace}/secrets", json.dumps(secret), headers)
    answer = server.getresponse()
    if answer.status == HTTPStatus.CONFLICT:
        return "there already"
    if answer.status != HTTPStatus.CREATED:
        raise SystemExit(f"{name} was not created: {answer.status} {answer.read().decode()}")
    return "created"


if __name__ == "__main__":
    main()
