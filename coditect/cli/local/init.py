"""`coditect init`: writes a small runnable project for a user, copied from the package's `starter` folder."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from secrets import token_hex
from string import Template
from typing import Annotated

import typer

from coditect.cli.terminal.output import Aside, Output, OutputOption, TableView, render
from coditect.errors import InputError

NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")
FILES = {
    "greeter.py": "an agent with one capability",
    "greetings.yaml": "a workflow that asks for it many times",
    "test_greeter.py": "both, tested without servers",
    "pyproject.toml": "what is installed, and which agents run",
    "compose.yaml": "the fleet and its servers on one machine, by Docker",
    "Dockerfile": "the agent's image",
    ".env": "the password of that RabbitMQ",
    "k8s/kustomization.yaml": "the fleet on Kubernetes",
    "k8s/dispatcher.yaml": "its control plane, with a volume for the ledger",
    "k8s/greeter.yaml": "its agent",
    "k8s/servers.env": "the addresses of the RabbitMQ and Redis there",
    "README.md": "the commands to try",
    ".gitignore": "what is not kept",
}

app = typer.Typer()


@app.command("init")
def init_command(
    folder: Annotated[Path, typer.Argument(help="The new project's folder, which does not exist or is empty.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Write a small project that runs at once: an agent, a workflow, a test of both, and deployments.

    Nothing is overwritten. `coditect dev` in the folder runs it.

    \b
    Example: coditect init my-fleet
    """
    name = folder.resolve().name
    if not NAME.fullmatch(name):
        fix = "small letters, digits, - and _, a letter first: coditect init my-fleet"
        raise InputError("A project has the name of its folder, and this is none", given=name, fix=fix)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        fix = "name a new folder, or an empty one"
        raise InputError("The folder is there already, and nothing is overwritten", folder=str(folder), fix=fix)
    starter = files("coditect.cli.local") / "starter"
    words = {"name": name, "password": token_hex(16)}
    for file in FILES:
        text = (starter / file.removeprefix(".")).read_text(encoding="utf-8")
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch(mode=0o600 if "$password" in text else 0o666)
        (folder / file).write_text(Template(text).safe_substitute(words), encoding="utf-8")
    table = TableView(("file", "what it is"), list(FILES.items()))
    render(output, {"folder": str(folder), "files": list(FILES)}, table, Aside(f"cd {folder}, then see README.md."))
