"""The errors of private servers and of `up`, each with the remedy.

::

    SetupError
    ├── MissingServer      a program is not installed; `fix` says how to install it
    ├── ServerUnreachable  nothing that speaks the protocol answers at this address
    ├── StartFailed        a program died or was not ready in time; `log` holds its last lines
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
    """The base of the errors of private servers, whose text ends with a log excerpt and the remedy."""

    def __init__(self, sentence: str, *, fix: str = "", log: str = "", **facts: object) -> None:
        super().__init__(sentence, **facts)
        self.fix = fix
        self.log = log

    def __str__(self) -> str:
        return "\n".join(part for part in (super().__str__(), self.log, self.fix) if part)


class MissingServer(LocalError):
    """The error of a program that `up` needs and that is not installed."""


class ServerUnreachable(LocalError):
    """The error of an address at which nothing that speaks the protocol answers."""


class StartFailed(LocalError):
    """The error of a program that died, or was not ready in time."""


class AlreadyUp(LocalError):
    """The error of a folder that another `up`, or another set of private servers, has locked."""
