"""The agent that writes API references in Markdown from Python source, without importing or running it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import griffe
from pydantic import BaseModel, ConfigDict, Field

from agents.summarizer import Summary, SummaryRequest
from agents.tools.confined import confined
from agents.tools.introduction import introduced
from agents.tools.markdown import public_objects, render_module
from agents.tools.sources import SourceFile, find_sources, parse_all
from coditect import Agent, Context, Retry
from coditect.errors import InputError

documenter = Agent("documenter", version="1.0.0", slots=48, tags=frozenset({"python", "docs"}))

_MAX_MARKDOWN_BYTES = 786_432  # a result is carried in one message


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
    """A line for each file that is no valid Python, with the reason."""


@documenter.capability(
    "docs.generate",
    timeout="2m",
    retry=Retry(max_attempts=3, first="1s", cap="1m"),
    description="Writes an API reference in Markdown from Python source, without importing it.",
    tags=frozenset({"python", "markdown"}),
    cost=1.0,
)
async def generate(task: DocsRequest, ctx: Context) -> Docs:
    """Write the API reference of a file's or package's public names; the same source gives the same text.

    With `summary` or `introduction` another agent is asked, and this agent's slot is free meanwhile.

    Raises:
        InputError: not retryable; nothing is there, no file parses, or the reference is too long.
    """
    sources = await asyncio.to_thread(find_sources, confined(task.path), task.globs)
    await ctx.progress(0.2, f"reading {len(sources)} modules")
    docs = await asyncio.to_thread(_write, task, sources)
    if task.summary:
        request = SummaryRequest(text=docs.markdown[:100_000], sentences=2, keywords=5)
        overview = await ctx.request("text.summarize", request, Summary, timeout="1m")
        docs = docs.model_copy(update={"markdown": _with_overview(docs.markdown, overview)})
    if task.introduction:
        docs = docs.model_copy(update={"markdown": await introduced(docs.markdown, ctx)})
    if len(docs.markdown.encode()) > _MAX_MARKDOWN_BYTES:
        raise InputError("the reference is too long for one result; ask for its packages one by one", path=task.path)
    return docs


def _write(task: DocsRequest, sources: list[SourceFile]) -> Docs:
    modules, left_out = parse_all(sources, lambda one, text: griffe.visit(_module_name(one.path), one.path, text))
    objects = [found for module in modules for found in public_objects(module)]
    blocks = [block for module in modules for block in render_module(module)]
    if left_out:
        blocks += ["# Left out", "\n".join(f"- {line}" for line in left_out)]
    return Docs(
        title=_module_name(Path(task.path)),
        markdown="\n\n".join(blocks) + "\n",
        modules=len(modules),
        objects=len(objects),
        documented=sum(found.has_docstring for found in objects),
        left_out=left_out,
    )


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
    title, _, rest = markdown.partition("\n\n")
    words = f"\n\nKeywords: {', '.join(overview.keywords)}." if overview.keywords else ""
    return f"{title}\n\n> {overview.summary}{words}\n\n{rest}" if overview.summary else markdown
