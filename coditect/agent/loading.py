"""The loader of agents: finds the agents that a file or module declares."""

from __future__ import annotations

import importlib
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType

from coditect.agent.declaration import Agent
from coditect.errors import CoditectError, SetupError

_LIBRARIES = (str(Path(__file__).parents[1]), *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))
"""The folders of Coditect and of installed libraries, whose code is not the user's."""


def load_agents(target: str) -> tuple[Agent, ...]:
    """Return the `Agent` values of `path/to/file.py`, `package.module` or `package.module:name`.

    A file inside a package is imported under its package's name; the package's parent folder is put on `sys.path`.

    Raises:
        SetupError: when no agent is declared there, or the import fails; the error names file and line.
    """
    place, _, name = target.partition(":")
    module = _import(place)
    found = {key: value for key, value in vars(module).items() if isinstance(value, Agent)}
    if name:
        found = {key: value for key, value in found.items() if key == name}
    if not found:
        raise SetupError(
            "No Agent is declared there",
            target=target,
            fix="declare one at the top level: reviewer = Agent('reviewer')",
        )
    return tuple(dict.fromkeys(found.values()))


def load_agent(target: str) -> Agent:
    """Return the only agent that a file, a module, or `package.module:name` declares.

    Raises:
        SetupError: when no agent or more than one agent is declared there, or the import fails.
    """
    agents = load_agents(target)
    if len(agents) > 1:
        place = target.partition(":")[0]
        names = [key for key, value in vars(_import(place)).items() if isinstance(value, Agent)]
        raise SetupError(
            "Several agents are declared there; name one",
            target=target,
            names=names,
            fix=f"coditect agent run {place}:{names[0]}",
        )
    return agents[0]


def _import(place: str) -> ModuleType:
    path = Path(place)
    if place.endswith(".py") or "/" in place or path.name in ("", ".."):
        if not path.is_file() or path.suffix != ".py":
            raise SetupError(
                "There is no such Python file",
                path=place,
                fix="name a file as seen from this folder, or write an example: coditect init my-fleet",
            )
        place = _module_name(path.resolve())
    elif "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(place)
    except CoditectError as error:
        error.facts.setdefault("at", _line_of(error)[0])
        raise
    except (Exception, SystemExit) as error:
        at, line = _line_of(error)
        reason = f"{type(error).__name__}: {getattr(error, 'msg', '') or error}"
        raise SetupError("The agent cannot be imported", target=place, at=at, line=line, reason=reason) from error


def _line_of(error: BaseException) -> tuple[str, str]:
    """Return `file:line` and the source line of the innermost traceback frame in the user's own code."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}", (error.text or "").strip()
    frames = traceback.extract_tb(error.__traceback__)
    own = [one for one in frames if not one.filename.startswith((*_LIBRARIES, "<"))]
    return (f"{own[-1].filename}:{own[-1].lineno}", own[-1].line or "") if own else ("", "")


def _module_name(path: Path) -> str:
    names = [path.stem]
    folder = path.parent
    while (folder / "__init__.py").is_file():
        names.append(folder.name)
        folder = folder.parent
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    return ".".join(reversed(names))
