"""A kubectl with one Deployment, whose roll-outs fail for the images that `bad` lists; its state is `$FAKE_KUBECTL`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

STATE = Path(os.environ["FAKE_KUBECTL"])
REVISION = "deployment.kubernetes.io/revision"


def fail(said: str) -> NoReturn:
    print(said, file=sys.stderr)
    sys.exit(1)


def roll_out(state: dict[str, Any], containers: list[dict[str, str]]) -> None:
    revision = len(state["history"]) + 1
    state["history"].append(containers)
    state["deployment"]["spec"]["template"]["spec"]["containers"] = containers
    state["deployment"]["metadata"]["annotations"][REVISION] = str(revision)


def main(words: list[str]) -> None:
    state = json.loads(STATE.read_text())
    deployment = state["deployment"]
    containers = deployment["spec"]["template"]["spec"]["containers"]
    bad = [one["image"] for one in containers if one["image"] in state["bad"]]
    state["asked"].append(words[2:])
    match words:
        case ["--namespace", namespace, *_] if namespace != deployment["metadata"]["namespace"]:
            fail('Error from server (NotFound): deployments.apps "shop" not found')
        case [_, _, "get", "deployment", "shop", "--output", "json"]:
            print(json.dumps(deployment))
        case [_, _, "get", "pods", "--selector", "app=shop", "--output", "json"]:
            waiting = {"waiting": {"reason": "ImagePullBackOff", "message": f"Back-off pulling {bad}"}}
            print(json.dumps({"items": [{"status": {"containerStatuses": [{"state": waiting}]}}] if bad else []}))
        case [_, _, "patch", "deployment", "shop", "--patch", text]:
            patch = json.loads(text)
            deployment["metadata"]["annotations"] |= patch["metadata"]["annotations"]
            images = {one["name"]: one["image"] for one in patch["spec"]["template"]["spec"]["containers"]}
            new = [one | {"image": images.get(one["name"], one["image"])} for one in containers]
            if new != containers:
                roll_out(state, new)
        case [_, _, "rollout", "undo", "deployment/shop", to] if to.startswith("--to-revision="):
            if not state.get("skips"):
                roll_out(state, state["history"][int(to.partition("=")[2]) - 1])
        case [_, _, "rollout", "status", "deployment/shop", timeout] if timeout.startswith("--timeout="):
            if bad:
                fail('error: deployment "shop" exceeded its progress deadline')
            print('deployment "shop" successfully rolled out')
        case _:
            fail(f"unknown command: {words}")
    STATE.write_text(json.dumps(state))


main(sys.argv[1:])
