"""The file of command agents, read from YAML and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from coditect.agent.declaration import Agent
from coditect.errors import InvalidWorkflow, SetupError
from coditect.integrations.commands.declaration import command_agent
from coditect.integrations.commands.schema import CommandFile

MOST_BYTES = 1_000_000
_MOST_TOLD = 5


def load_commands(path: Path | str, *, folder: str | None = None) -> Agent:
    """Read a file of command agents, and return its `Agent`; workspaces lie below `folder`.

    Raises:
        SetupError: when the file cannot be read or is wrong; the error names the fields and what to write.
    """
    from coditect.workflow.documents.file import read_values  # noqa: PLC0415 - an optional dependency

    try:
        with Path(path).open("rb") as file:
            text = file.read(MOST_BYTES + 1).decode()
        if len(text) > MOST_BYTES:
            raise SetupError("The file of commands is too large", path=str(path), most_bytes=MOST_BYTES)
        given = read_values(text)
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError("The file of commands cannot be read", path=str(path), reason=str(error)) from error
    except InvalidWorkflow as error:
        raise SetupError(error.sentence, path=str(path), **error.facts) from error
    return command_agent(checked_commands(given, path=str(path)), folder=folder)


def checked_commands(given: Any, **facts: object) -> CommandFile:
    """Check the parsed content of a command file, and return it as a `CommandFile`.

    Raises:
        SetupError: when a field is wrong; the error has the first five of them, and the facts.
    """
    try:
        return CommandFile.model_validate(given)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        told = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found[:_MOST_TOLD]]
        fix = "see docs/programs.md for the fields of a file of commands"
        raise SetupError("The command is declared wrongly", **facts, problems=told, fix=fix) from error
