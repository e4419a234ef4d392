"""A docker of images that are folders and containers that are processes: what the deployer asks of the real one.

State is below `$FAKE_DOCKER`: `images/NAME`, `containers/NAME.json`, `logs/ID`. An unknown word is an error.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(os.environ["FAKE_DOCKER"])


def fail(said: str) -> NoReturn:
    print(said, file=sys.stderr)
    sys.exit(1)


def image(name: str) -> Path:
    return ROOT / "images" / name.replace("/", "_")


def place(name: str) -> Path:
    return ROOT / "containers" / f"{name}.json"


def container(name: str) -> dict[str, Any]:
    if not place(name).exists():
        fail(f"Error response from daemon: No such container: {name}")
    found: dict[str, Any] = json.loads(place(name).read_text())
    return found


def runs(found: dict[str, Any]) -> bool:
    try:
        stat = Path(f"/proc/{found['pid'] or 'none'}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # the second: it ends while it is read
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def stop(name: str) -> None:
    found = container(name)
    if runs(found):
        os.kill(found["pid"], signal.SIGKILL)
        while runs(found):
            pass
    place(name).write_text(json.dumps(found | {"pid": 0}))


def start(name: str) -> None:
    found = container(name)
    if not runs(found):
        with (ROOT / "logs" / found["id"]).open("ab") as log:
            command = [sys.executable, "app.py", found["port"]]
            environment = {"PATH": os.environ["PATH"], **found["environment"]}
            process = subprocess.Popen(
                command, cwd=found["image"], env=environment, stdout=log, stderr=log, start_new_session=True
            )
        place(name).write_text(json.dumps(found | {"pid": process.pid}))


def run(words: list[str]) -> None:
    *options, name = words
    given: dict[str, list[str]] = {"--label": [], "--env": []}
    while options:
        word = options.pop(0)
        if word == "--detach":
            continue
        if word not in ("--name", "--restart", "--publish", "--label", "--env"):
            fail(f"unknown flag: {word}")
        given.setdefault(word, []).append(options.pop(0))
    new = given["--name"][0]
    if place(new).exists():
        fail(f'Conflict. The container name "/{new}" is already in use')
    host, port, _ = given["--publish"][0].split(":")
    if host != "127.0.0.1" or not image(name).is_dir():
        fail("Unable to find image")
    number = str(len(list((ROOT / "logs").iterdir())))
    found = {
        "id": number,
        "image": str(image(name)),
        "port": port,
        "pid": 0,
        "labels": dict(one.split("=", 1) for one in given["--label"]),
        "environment": dict(one.split("=", 1) for one in given["--env"]),
    }
    place(new).write_text(json.dumps(found))
    (ROOT / "logs" / number).touch()
    if (image(name) / "refuse").exists():  # the container is made all the same
        fail("exec: no-such-program: executable file not found in $PATH")
    start(new)


def rename(name: str, new: str) -> None:
    container(name)
    if place(new).exists():
        fail(f"name {new} is in use")
    place(name).rename(place(new))


def remove(name: str) -> None:
    stop(name)
    place(name).unlink()


def asked_of_images(words: list[str]) -> bool:
    match words:
        case ["image", "inspect", "--format", "{{.Id}}", name]:
            print("sha256:1") if image(name).is_dir() else fail(f"Error: No such image: {name}")
        case ["build", "--tag", name, "--file", file, tree] if Path(file).parent == Path(tree):
            shutil.copytree(tree, image(name), ignore=shutil.ignore_patterns(".git"))
        case ["push", name]:
            shutil.copytree(image(name), ROOT / "registry" / image(name).name, dirs_exist_ok=True)
        case _:
            return False
    return True


def asked_of_containers(words: list[str]) -> None:
    match words:
        case ["container", "inspect", "--format", "{{json .Config.Labels}}", name]:
            print(json.dumps(container(name)["labels"]))
        case ["container", "inspect", "--format", "{{.State.Running}}", name]:
            print(str(runs(container(name))).lower())
        case ["run", *options]:
            run(options)
        case ["start", name]:
            start(name)
        case ["stop", "-t", "5", name]:
            stop(name)
        case ["rename", name, new]:
            rename(name, new)
        case ["rm", "--force", name]:
            remove(name)
        case ["logs", "--tail", _, name]:
            print((ROOT / "logs" / container(name)["id"]).read_text(), file=sys.stderr)
        case _:
            fail(f"unknown command: {words}")


for folder in ("images", "containers", "logs"):
    (ROOT / folder).mkdir(parents=True, exist_ok=True)
with (ROOT / "asked").open("a") as asked:
    print(*sys.argv[1:], file=asked)
if not asked_of_images(sys.argv[1:]):
    asked_of_containers(sys.argv[1:])
