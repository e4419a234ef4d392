"""Two agents that write guides in Markdown from a repository: one for users, one for operators.

Both read and run nothing. `agents/documenter.py` writes the API reference; `examples/parallel_docs.yaml` has all three
at work at once.
"""

from __future__ import annotations

import ast
import asyncio
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import griffe
from pydantic import BaseModel, ConfigDict, Field

from agents.tools.repository import (
    MANIFESTS,
    deployed_by,
    is_repository,
    manifests_of,
    outlines,
    ports_of,
    project_at,
    project_of,
    python_sources,
    readme_of,
    settings_of,
    targets_of,
)
from agents.tools.site import LONGEST_TITLE, introduced
from agents.tools.sources import SourceFile, confined, fleet_root, parse_all
from coditect import Agent, Context, Retry
from coditect.errors import InputError

guide_writer = Agent("guide-writer", version="1.0.0", slots=8, tags=frozenset({"python", "docs"}))
deployment_writer = Agent("deployment-writer", version="1.0.0", slots=8, tags=frozenset({"python", "docs"}))

_RETRY = Retry(max_attempts=3, first="1s", cap="1m")
_MOST_CHARACTERS, _MOST_LISTED = 150_000, 200
_VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")


class GuideRequest(BaseModel):
    """A request for a guide about a package, a module or a repository."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(min_length=1, description="package or repository on the agent's machine")
    root: str | None = Field(
        None, min_length=1, description="the project's folder; default: the one of the package, by its manifest"
    )
    introduction: bool = Field(False, description="ask writers.introduction for the page's beginning")


class Guide(BaseModel):
    """A guide in Markdown."""

    title: str
    markdown: str
    items: int
    """The number of public names, or of settings and files, that the guide is about."""
    missing: list[str] = []
    """What such a guide needs and the repository does not have."""


@guide_writer.capability(
    "docs.user-guide",
    timeout="5m",
    retry=_RETRY,
    description="Writes a user guide of a package or repository: what it offers, by topic.",
)
async def write_user_guide(task: GuideRequest, ctx: Context) -> Guide:
    """Write what a package offers to its users: each module's purpose, with its public names and what they do.

    Of a repository, the beginning of its README and how it is used come first.

    Raises:
        InputError: not retryable; nothing is there, or the file is no valid Python.
    """
    sources, _ = await asyncio.to_thread(python_sources, confined(task.path))
    guide = await asyncio.to_thread(_user_guide, Path(task.path), sources)
    return await _with_introduction(guide, task, ctx)


@deployment_writer.capability(
    "docs.deployment-guide", timeout="5m", retry=_RETRY, description="Writes how to install, set and run a project."
)
async def write_deployment_guide(task: GuideRequest, ctx: Context) -> Guide:
    """Write what an operator needs: requirements, commands, settings that the code reads, ports, and files.

    Raises:
        InputError: not retryable; the named project has no manifest, or its manifest is not valid.
    """
    path = Path(confined(task.path))
    sources, _ = await asyncio.to_thread(python_sources, task.path)
    root = project_of(path, fleet_root()) if task.root is None else Path(confined(task.root))
    if task.root is not None and root is not None and not manifests_of(root):
        fix = f"give a folder with one of {', '.join(MANIFESTS)}"
        raise InputError("there is no project", root=task.root, reason="it has no manifest", fix=fix)
    guide = await asyncio.to_thread(_deployment_guide, path, root, sources)
    return await _with_introduction(guide, task, ctx)


async def _with_introduction(guide: Guide, task: GuideRequest, ctx: Context) -> Guide:
    if not task.introduction:
        return guide
    return guide.model_copy(update={"markdown": await introduced(guide.markdown, ctx)})


def _user_guide(path: Path, sources: Sequence[SourceFile]) -> Guide:
    whole = is_repository(path)
    readme, project = (readme_of(path), project_at(path)) if whole else ({}, None)
    commands = (project.commands if project else {}) | (targets_of(path) if whole else {})
    topics, items, left_out = _topics(path, sources)
    name = project.name if project else path.resolve().stem
    wanted = {
        "a README": bool(readme) or not whole,
        "commands": bool(commands) or not whole,
        "public names, in a language that is read": bool(items),
    }
    missing = [name for name, found in wanted.items() if not found]
    blocks = [f"# Using {name}"]
    for title, text in readme.items():
        blocks += [f"## {title}", text]
    blocks += ["## Commands", "\n".join(_line(*command) for command in commands.items())] if commands else []
    for topic, lines in topics.items():
        blocks += [f"## {topic}", *lines]
    return _guide(f"Using {name}", blocks, items, {"Left out": left_out, "Not found": missing})


def _topics(path: Path, sources: Sequence[SourceFile]) -> tuple[dict[str, list[str]], int, list[str]]:
    """Return the blocks of each topic, which is a folder, the number of public names, and what could not be read."""
    modules, left_out = parse_all(
        sources, lambda source, text: griffe.visit(source.path.stem, source.path, text), needed=path.is_file()
    )
    topics: dict[str, list[str]] = defaultdict(list)
    items = 0
    for module in modules:
        names = [
            member
            for member in module.members.values()
            if member.is_public and not member.is_alias and not member.is_module
        ]
        if not names:
            continue
        items += len(names)
        purpose = module.docstring.value.partition("\n\n")[0].strip() if module.docstring else "It has no description."
        file = Path(str(module.filepath))
        heading = file.parent.name if file.stem == "__init__" else file.stem
        topics[file.parent.name] += [f"### {heading}", purpose, "\n".join(_described(member) for member in names)]
    others, not_read = outlines(path)
    for outline in others:
        lines = [_line(item.name, item.text) for item in outline.declared]
        if lines:
            items += len(lines)
            topics[str(Path(outline.name).parent)] += [f"### {outline.name}", "\n".join(lines)]
    return topics, items, left_out + not_read


def _guide(title: str, blocks: list[str], items: int, notes: Mapping[str, list[str]]) -> Guide:
    """Return a guide of blocks, cut to its bound, with notes at its end."""
    text, cut = "\n\n".join(blocks), "the rest of this guide, which is too long"
    notes = {**notes, "Left out": [*notes.get("Left out", ()), *([cut] if len(text) > _MOST_CHARACTERS else [])]}
    parts = [text[:_MOST_CHARACTERS]]
    for name, lines in notes.items():
        parts += [f"## {name}", "\n".join(f"* {line}" for line in lines[:_MOST_LISTED])] if lines else []
    return Guide(
        title=title[:LONGEST_TITLE], markdown="\n\n".join(parts) + "\n", items=items, missing=notes.get("Not found", [])
    )


def _line(name: str, text: str) -> str:
    return f"* `{name}`: {text}" if text else f"* `{name}`"


def _described(member: Any) -> str:
    text = member.docstring.value.partition("\n\n")[0] if member.docstring else ""
    return _line(member.name, " ".join(text.split()))


def _deployment_guide(path: Path, root: Path | None, sources: Sequence[SourceFile]) -> Guide:
    folder = root or (path if path.is_dir() else path.parent)
    project = project_at(folder) if root else None
    others, _ = outlines(path)
    variables = {**settings_of(others, folder), **_variables(sources)}
    files = deployed_by(folder)
    unread = [manifest for manifest in manifests_of(folder) if not project or manifest != project.manifest]
    name = project.name if project else path.resolve().stem
    unknown = "not known: the package is in no project with a manifest that is read, such as a pyproject.toml"
    commands = (project.commands if project else {}) | targets_of(folder)
    sections = {
        "Requirements": [requirement for requirement in (project.runtime, *project.dependencies) if requirement]
        if project
        else [unknown],
        "Extras": [f"{extra}: {', '.join(needs)}" for extra, needs in (project.extras if project else {}).items()],
        "Commands": [f"{command}: {text}" if text else command for command, text in commands.items()],
        "Settings": [f"{variable}, read in {', '.join(where[:3])}" for variable, where in sorted(variables.items())],
        "Ports": ports_of(folder),
        "Files": files,
        "Manifests that were not read": unread,
    }
    wanted = {"requirements": "Requirements", "commands": "Commands", "settings": "Settings", "ports": "Ports"}
    missing = [name for name, title in wanted.items() if not sections[title] or sections[title] == [unknown]]
    missing += [] if files else ["files that build, start or deploy it"]
    blocks = [f"# Deploying {name}"]
    for title, lines in sections.items():
        blocks += [f"## {title}", "\n".join(f"* {line}" for line in lines)] if lines else []
    return _guide(f"Deploying {name}", blocks, len(variables) + len(files), {"Not found": missing})


def _variables(sources: Sequence[SourceFile]) -> dict[str, list[str]]:
    """Return the texts in the code that look like environment variables, sorted, each with the modules that have it."""
    found: dict[str, set[str]] = defaultdict(set)
    parsed, _ = parse_all(sources, lambda source, text: (source, ast.parse(text)), needed=False)
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
        yield from (node.value for node in candidates if isinstance(node, ast.Constant) and isinstance(node.value, str))
