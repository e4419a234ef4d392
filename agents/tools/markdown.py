"""The renderer of griffe's syntax trees as Markdown: a section per module, class and function."""

from __future__ import annotations

from collections.abc import Iterator

import griffe

_MAX_VALUE = 80


def render_module(module: griffe.Module) -> Iterator[str]:
    """Yield a module's page as Markdown blocks: its docstring, public classes, functions and values."""
    yield f"# `{module.path}`"
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
    said = next(iter((shown.docstring.value if shown.docstring else "").split("\n\n")), "")
    return f"{line}: {' '.join(said.split())}" if said else line


def _docstring(shown: griffe.Object) -> Iterator[str]:
    if shown.docstring and shown.docstring.value.strip():
        yield shown.docstring.value.strip()


def _code(text: str) -> str:
    return f"```python\n{text}\n```"
