"""Two agents that write guides in Markdown from Python source: one for users, one for operators.

Both read and run nothing. `agents/documenter.py` writes the API reference; `examples/parallel_docs.yaml` has all three
at work at once.
"""

from __future__ import annotations

import ast
import asyncio
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import griffe
from pydantic import BaseModel, ConfigDict, Field

from agents.tools.confined import confined, fleet_root
from agents.tools.introduction import introduced
from agents.tools.sources import SourceFile, find_sources, parse_all, project_of
from coditect import Agent, Context, Retry
from coditect.errors import InputError

guide_writer = Agent("guide-writer", version="1.0.0", slots=8, tags=frozenset({"python", "docs"}))
deployment_writer = Agent("deployment-writer", version="1.0.0", slots=8, tags=frozenset({"python", "docs"}))

_RETRY = Retry(max_attempts=3, first="1s", cap="1m")
_VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
_FILES = ("Dockerfile", "*/Dockerfile", "compose.y*ml", "docker-compose.y*ml", "k8s/*.y*ml", "k8s/*/*.y*ml", "Makefile")


class GuideRequest(BaseModel):
    """A request for a guide about a package."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(min_length=1, description="package folder on the agent's machine")
    root: str | None = Field(
        None, min_length=1, description="the project's folder; default: the one of the package, by its pyproject.toml"
    )
    introduction: bool = Field(False, description="ask writers.introduction for the page's beginning")


class Guide(BaseModel):
    """A guide in Markdown."""

    title: str
    markdown: str
    items: int
    """The number of public names, or of settings and files, that the guide is about."""


class Project(BaseModel):
    """The table `project` of a pyproject.toml, as far as an operator needs it."""

    model_config = ConfigDict(alias_generator=lambda name: name.replace("_", "-"))

    name: str
    requires_python: str = "of any version"
    dependencies: list[str] = []
    optional_dependencies: dict[str, list[str]] = {}
    scripts: dict[str, str] = {}


@guide_writer.capability(
    "docs.user-guide",
    timeout="5m",
    retry=_RETRY,
    description="Writes a user guide of a package: what it offers, by topic.",
)
async def write_user_guide(task: GuideRequest, ctx: Context) -> Guide:
    """Write what a package offers to its users: each module's purpose, with its public names and what they do.

    Raises:
        InputError: not retryable; nothing is there, no file parses, or no name is public.
    """
    sources = await asyncio.to_thread(find_sources, confined(task.path), ["**/*.py"])
    guide = await asyncio.to_thread(_user_guide, Path(task.path).name, sources)
    return await _with_introduction(guide, task, ctx)


@deployment_writer.capability(
    "docs.deployment-guide", timeout="5m", retry=_RETRY, description="Writes how to install, set and run a project."
)
async def write_deployment_guide(task: GuideRequest, ctx: Context) -> Guide:
    """Write what an operator needs: requirements, extras, commands, environment variables in the code, and files.

    Raises:
        InputError: not retryable; the named project has no pyproject.toml, or no file parses.
    """
    path = Path(confined(task.path))
    sources = await asyncio.to_thread(find_sources, task.path, ["**/*.py"])
    root = project_of(path, fleet_root()) if task.root is None else Path(confined(task.root))
    guide = await asyncio.to_thread(_deployment_guide, path, root, sources)
    return await _with_introduction(guide, task, ctx)


async def _with_introduction(guide: Guide, task: GuideRequest, ctx: Context) -> Guide:
    if not task.introduction:
        return guide
    return guide.model_copy(update={"markdown": await introduced(guide.markdown, ctx)})


def _user_guide(name: str, sources: Sequence[SourceFile]) -> Guide:
    modules, left_out = parse_all(sources, lambda one, text: griffe.visit(one.path.stem, one.path, text))
    topics: dict[str, list[str]] = defaultdict(list)
    items = 0
    for module in modules:
        names = [one for one in module.members.values() if one.is_public and not one.is_alias and not one.is_module]
        if not names:
            continue
        items += len(names)
        purpose = module.docstring.value.partition("\n\n")[0].strip() if module.docstring else "It has no description."
        file = Path(str(module.filepath))
        heading = file.parent.name if file.stem == "__init__" else file.stem
        topics[file.parent.name] += [f"### {heading}", purpose, "\n".join(_described(one) for one in names)]
    if not items:
        fix = "give a package or module whose classes, functions or values have no leading underscore"
        raise InputError("there is nothing public to document", path=name, modules=len(modules), fix=fix)
    blocks = [f"# Using {name}"]
    for topic, lines in topics.items():
        blocks += [f"## {topic}", *lines]
    blocks += ["## Left out", "\n".join(f"* {line}" for line in left_out)] if left_out else []
    return Guide(title=f"Using {name}", markdown="\n\n".join(blocks) + "\n", items=items)


def _described(one: Any) -> str:
    text = one.docstring.value.partition("\n\n")[0] if one.docstring else ""
    return f"* `{one.name}`: {' '.join(text.split())}" if text else f"* `{one.name}`"


def _deployment_guide(path: Path, root: Path | None, sources: Sequence[SourceFile]) -> Guide:
    project = None if root is None else _project(root)
    folder = root or (path if path.is_dir() else path.parent)
    variables = _variables(sources)
    files = sorted({str(file.relative_to(folder)) for pattern in _FILES for file in folder.glob(pattern)})
    name = path.resolve().stem if project is None else project.name
    known = project or Project(name=name)
    sections = {
        "Requirements": [f"Python {known.requires_python}", *known.dependencies]
        if project
        else ["not known: the package is in no project with a pyproject.toml"],
        "Extras": [f"{extra}: {', '.join(needs)}" for extra, needs in known.optional_dependencies.items()],
        "Commands": [f"{command}: {target}" for command, target in known.scripts.items()],
        "Settings": [f"{variable}, read in {', '.join(where[:3])}" for variable, where in variables.items()],
        "Files": files,
    }
    blocks = [f"# Deploying {name}"]
    for title, lines in sections.items():
        blocks += [f"## {title}", "\n".join(f"* {line}" for line in lines)] if lines else []
    return Guide(title=f"Deploying {name}", markdown="\n\n".join(blocks) + "\n", items=len(variables) + len(files))


def _project(root: Path) -> Project:
    try:
        found = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
        return Project(**{"name": root.resolve().name, **found})
    except (OSError, ValueError, TypeError) as error:
        fix = "give the folder of a project with a valid pyproject.toml"
        raise InputError("there is no project", root=str(root), reason=str(error)[:200], fix=fix) from error


def _variables(sources: Sequence[SourceFile]) -> dict[str, list[str]]:
    """Return the texts in the code that look like environment variables, sorted, each with the modules that have it."""
    found: dict[str, set[str]] = defaultdict(set)
    parsed, _ = parse_all(sources, lambda one, text: (one, ast.parse(text)))
    for source, tree in parsed:
        for text in _texts(tree):
            if _VARIABLE.fullmatch(text):
                found[text].add(source.path.stem)
    return {name: sorted(found[name]) for name in sorted(found)}


def _texts(tree: ast.AST) -> Iterator[str]:
    """Yield each text that the code passes to a call, such as `getenv`, or uses as a key, such as of `environ`."""
    for node in ast.walk(tree):
        candidates: Sequence[ast.expr] = ()
        if isinstance(node, ast.Call):
            candidates = node.args
        elif isinstance(node, ast.Subscript):
            candidates = [node.slice]
        yield from (one.value for one in candidates if isinstance(one, ast.Constant) and isinstance(one.value, str))
