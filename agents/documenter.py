"""The agent that writes API references in Markdown from source, without importing or running it.

Python is read as a whole; of other languages, the lines that declare something public (`agents/tools/repository.py`).
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import griffe
from pydantic import BaseModel, ConfigDict, Field

from agents.summarizer import Summary, SummaryRequest
from agents.tools.repository import Outline, outlines, python_sources
from agents.tools.site import LONGEST_TITLE, introduced
from agents.tools.sources import SourceFile, confined, parse_all
from coditect import Agent, Context, Retry

_MAX_VALUE = 80


def render_module(module: griffe.Module, *, brief: bool = False) -> Iterator[str]:
    """Yield a module's page as Markdown blocks: its docstring, public classes, functions and values.

    In brief it has a line for each class and function, with the first sentences of its docstring.
    """
    yield f"# `{module.path}`"
    if brief:
        yield from _in_brief(module)
        return
    yield from _docstring(module)
    values = [member for member in _public(module) if isinstance(member, griffe.Attribute)]
    if values:
        yield "## Values"
        yield from (_value(value) for value in values)
    for member in _public(module):
        if isinstance(member, griffe.Class):
            yield from _class(member, level=2)
        elif isinstance(member, griffe.Function):
            yield from _function(member, level=2)


def _in_brief(module: griffe.Module) -> Iterator[str]:
    if module.docstring:
        yield _first(module)
    lines = []
    for shown in public_objects(module):
        if shown is not module:
            text = _first(shown)
            name = shown.path.removeprefix(f"{module.path}.")
            lines.append(f"- `{name}`: {text}" if text else f"- `{name}`")
    if lines:
        yield "\n".join(lines)


def _first(shown: griffe.Object) -> str:
    """Return the first paragraph of an object's docstring as one line; empty without one."""
    return " ".join(shown.docstring.value.strip().partition("\n\n")[0].split()) if shown.docstring else ""


def render_outline(outline: Outline) -> Iterator[str]:
    """Yield the page of a file in another language as Markdown blocks: its public names, as they are declared."""
    yield f"# `{outline.name}`"
    for shown in outline.declared:
        yield f"## `{shown.name}`"
        yield f"```{outline.suffix}\n{shown.line}\n```"
        if shown.text:
            yield shown.text


def public_objects(module: griffe.Module) -> Iterator[griffe.Object]:
    """Yield a module and its public classes and functions, also those nested in its classes, but no values."""
    yield module
    pending: list[griffe.Object] = [module]
    while pending:
        for member in _public(pending.pop()):
            if isinstance(member, griffe.Class | griffe.Function):
                yield member
            if isinstance(member, griffe.Class):
                pending.append(member)


def _public(parent: griffe.Object) -> list[griffe.Object]:
    members = [member for member in parent.members.values() if isinstance(member, griffe.Object)]
    shown = [member for member in members if not member.is_module and not member.name.startswith("_")]
    return sorted(shown, key=lambda member: member.lineno or 0)


def _class(shown: griffe.Class, *, level: int) -> Iterator[str]:
    bases = ", ".join(str(base) for base in shown.bases)
    yield f"{'#' * level} class `{shown.name}`"
    yield _code(f"class {shown.name}({bases})" if bases else f"class {shown.name}")
    yield from _docstring(shown)
    members = _public(shown)
    yield from (_value(member) for member in members if isinstance(member, griffe.Attribute))
    for member in members:
        if isinstance(member, griffe.Function):
            yield from _function(member, level=level + 1)
        elif isinstance(member, griffe.Class) and level < 5:
            yield from _class(member, level=level + 1)


def _function(shown: griffe.Function, *, level: int) -> Iterator[str]:
    prefix = "async def" if "async" in shown.labels else "def"
    yield f"{'#' * level} `{shown.name}`"
    yield _code(f"{prefix} {shown.signature()}")
    yield from _docstring(shown)


def _value(shown: griffe.Attribute) -> str:
    annotation = f": {shown.annotation}" if shown.annotation is not None else ""
    value = " ".join(str(shown.value).split()) if shown.value is not None else ""
    if len(value) > _MAX_VALUE:
        value = value[: _MAX_VALUE - 1] + "…"
    line = f"- `{shown.name}{annotation}{f' = {value}' if value else ''}`".replace("\n", " ")
    said = _first(shown)
    return f"{line}: {said}" if said else line


def _docstring(shown: griffe.Object) -> Iterator[str]:
    if shown.docstring and shown.docstring.value.strip():
        yield shown.docstring.value.strip()


def _code(text: str) -> str:
    return f"```python\n{text}\n```"


documenter = Agent("documenter", version="1.0.0", slots=48, tags=frozenset({"python", "docs"}))

_MOST_LISTED = 200
_MAX_MARKDOWN_BYTES = 524_288  # it is carried in one message, as a page beside others


class DocsRequest(BaseModel):
    """A request for an API reference: which source to document, and whether to put a summary on top."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(min_length=1, description="package folder or module file on the agent's machine")
    globs: list[str] = Field(["**/*.py"], max_length=50, description="which files of a folder")
    summary: bool = Field(False, description="ask text.summarize for an overview to put on top")
    introduction: bool = Field(False, description="ask writers.introduction for the page's beginning")


class Docs(BaseModel):
    """An API reference in Markdown of a file or package, with counts of its public objects."""

    title: str
    markdown: str
    modules: int
    objects: int
    """The number of public modules, classes and functions in the source."""

    documented: int
    """The number of public objects that have a docstring."""

    left_out: list[str] = []
    """A line for each file that is no valid Python, or for which there is no room, with the reason."""

    missing: list[str] = []
    """What a reference needs and the source does not have."""


@documenter.capability(
    "docs.generate",
    timeout="2m",
    retry=Retry(max_attempts=3, first="1s", cap="1m"),
    description="Writes an API reference in Markdown from source, without importing it.",
    tags=frozenset({"python", "markdown"}),
    cost=1.0,
)
async def generate(task: DocsRequest, ctx: Context) -> Docs:
    """Write the API reference of a file's, package's or repository's public names; the same source, the same text.

    With `summary` or `introduction` another agent is asked, and this agent's slot is free meanwhile. A reference that
    is too long for one result is written in brief; then the modules at its end are left out.

    Raises:
        InputError: not retryable; nothing is there, or the file is no valid Python.
    """
    sources, too_much = await asyncio.to_thread(python_sources, confined(task.path), task.globs)
    await ctx.progress(0.2, f"reading {len(sources)} modules")
    docs = await asyncio.to_thread(_write, task, sources, too_much)
    if task.summary:
        request = SummaryRequest(text=docs.markdown[:100_000], sentences=2, keywords=5)
        overview = await ctx.request("text.summarize", request, Summary, timeout="1m")
        docs = docs.model_copy(update={"markdown": _with_overview(docs.markdown, overview)})
    if task.introduction:
        docs = docs.model_copy(update={"markdown": await introduced(docs.markdown, ctx)})
    return docs


def _write(task: DocsRequest, sources: list[SourceFile], too_much: list[str]) -> Docs:
    path = Path(task.path)
    modules, left_out = parse_all(
        sources, lambda source, text: griffe.visit(_module_name(source.path), source.path, text), needed=path.is_file()
    )
    found, not_read = outlines(path)
    others = [outline for outline in found if outline.declared]
    objects = [found for module in modules for found in public_objects(module)]
    declared = [declaration for outline in others for declaration in outline.declared]
    documented = sum(found.has_docstring for found in objects) + sum(bool(item.text) for item in declared)
    pages, unplaced = _fitting(modules, others)
    left_out += too_much + not_read + unplaced
    missing = [] if objects or declared else ["source with public names, in a language that is read"]
    bare = len(objects) + len(declared) - documented
    missing += [f"a description of {bare} of {len(objects) + len(declared)} public names"] if bare else []
    blocks = pages or [f"# `{_module_name(path)}`"]
    for title, lines in {"Left out": left_out, "Not found": missing}.items():
        blocks += [f"# {title}", "\n".join(f"- {line}" for line in lines[:_MOST_LISTED])] if lines else []
    return Docs(
        title=_module_name(path)[:LONGEST_TITLE],
        markdown="\n\n".join(blocks) + "\n",
        modules=len(modules) + len(others),
        objects=len(objects) + len(declared),
        documented=documented,
        left_out=left_out[:_MOST_LISTED],
        missing=missing,
    )


def _fitting(modules: list[griffe.Module], others: list[Outline]) -> tuple[list[str], list[str]]:
    """Return the pages of all modules, in brief if they are too long otherwise, and a line for each without room."""
    names = [*(module.path for module in modules), *(outline.name for outline in others)]
    for brief in (False, True):
        pages = ["\n\n".join(render_module(module, brief=brief)) for module in modules]
        pages += ["\n\n".join(render_outline(outline)) for outline in others]
        sizes = [*accumulate(len(page.encode()) + 2 for page in pages)]
        if not sizes or sizes[-1] <= _MAX_MARKDOWN_BYTES:
            return pages, []
    room = bisect_right(sizes, _MAX_MARKDOWN_BYTES)
    return pages[:room], [f"{name}: the reference is too long; ask for it alone" for name in names[room:]]


def _module_name(path: Path) -> str:
    """Return a file's dotted module name: the packages around it (folders with an ``__init__.py``) and its own name."""
    resolved = path.resolve()
    parts = [] if resolved.name == "__init__.py" else [resolved.stem if resolved.is_file() else resolved.name]
    for folder in resolved.parents:
        if not (folder / "__init__.py").is_file():
            break
        parts.insert(0, folder.name)
    return ".".join(parts) or resolved.parent.name


def _with_overview(markdown: str, overview: Summary) -> str:
    title, _, text = markdown.partition("\n\n")
    words = f"\n\nKeywords: {', '.join(overview.keywords)}." if overview.keywords else ""
    return f"{title}\n\n> {overview.summary}{words}\n\n{text}" if overview.summary else markdown
