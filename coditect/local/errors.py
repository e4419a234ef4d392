"""The errors of private servers and of `up`; their text ends with a log excerpt and the remedy, where these are known.

::

    SetupError
    ├── MissingServer      a program is not installed; `fix` says how to install it
    ├── ServerUnreachable  no server of the expected kind answers at this address, or it answers with an error
    ├── StartFailed        a program could not be started; `log` may hold its last lines
    └── AlreadyUp          another `up` holds this folder
"""

from __future__ import annotations

from coditect.errors import SetupError

INSTALL_SERVERS = """\
  Debian, Ubuntu   sudo apt-get install rabbitmq-server redis-server
  Fedora           sudo dnf install rabbitmq-server redis
  macOS            brew install rabbitmq redis
  Docker           docker run -d -p 127.0.0.1:5672:5672 rabbitmq:4
                   docker run -d -p 127.0.0.1:6379:6379 redis:7
                   export CODITECT_AMQP_URL=amqp://guest:guest@127.0.0.1:5672
                   export CODITECT_REDIS_URL=redis://127.0.0.1:6379/0"""


class LocalError(SetupError):
    """The base of the errors of private servers, whose text ends with a log excerpt and the remedy, if any."""

    def __init__(self, sentence: str, *, fix: str = "", log: str = "", **facts: object) -> None:
        super().__init__(sentence, **facts)
        self.fix = fix
        self.log = log

    def __str__(self) -> str:
        return "\n".join(part for part in (super().__str__(), self.log, self.fix) if part)


class MissingServer(LocalError):
    """The error of a server's program that must be started and is not installed, or not in the named folder."""


class ServerUnreachable(LocalError):
    """The error of an address at which no server of the expected kind answers in time, or one answers with an error."""


class StartFailed(LocalError):
    """The error of servers or programs that could not be started, such as one that died or was not ready in time."""


class AlreadyUp(LocalError):
    """The error of a folder that another `up`, or another set of private servers, has locked."""
