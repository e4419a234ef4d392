"""Creates the Secrets of RabbitMQ and Redis with fresh passwords, unless they are there. Runs once, in a Job.

RabbitMQ's has the keys that the RabbitMQ Cluster Operator gives it, so that the fleet reads the same with both.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import sys
from http import HTTPStatus
from http.client import HTTPSConnection
from pathlib import Path
from secrets import token_urlsafe

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
SECONDS = 30


def main() -> None:
    """Create each Secret; one that is there keeps its passwords."""
    namespace = (ACCOUNT / "namespace").read_text()
    password = token_urlsafe(24)
    broker = {
        "username": "coditect",
        "password": password,
        "host": f"rabbitmq.{namespace}.svc",
        "port": "5672",
        "connection_string": f"amqp://coditect:{password}@rabbitmq.{namespace}.svc:5672/",
    }
    for name, values in (("rabbitmq-default-user", broker), ("redis", {"password": token_urlsafe(24)})):
        sys.stdout.write(f"{name}: {create(namespace, name, values)}\n")


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
