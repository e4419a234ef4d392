"""What `coditect agent run` does for command agents: run the agent of a file, or one command as a capability."""

from __future__ import annotations

from coditect.agent.program import run_agent
from coditect.integrations.commands.declaration import command_agent
from coditect.integrations.commands.loading import checked_commands, load_commands
from coditect.settings.settings import Settings


def run_file(path: str, settings: Settings) -> int:
    """Run the command agent of a file until it is stopped, and return the exit code.

    Raises:
        SetupError: when the file is wrong.
    """
    return run_agent(load_commands(path, folder=settings.workspace), settings)


def run_command(command: str, capability: str, environment: list[str], name: str, settings: Settings) -> int:
    """Run an agent with one capability, whose tasks a command does, until it is stopped; return the exit code.

    Raises:
        SetupError: when the command or a name is wrong.
    """
    fields = {"command": command, "environment": environment}
    file = checked_commands({"name": name, "capabilities": {capability: fields}})
    return run_agent(command_agent(file, folder=settings.workspace), settings)
