"""The settings of an agent that passes tasks on to a remote A2A agent, read once by `coditect agent run --a2a`.

=======================  =======  ===============================================================
variable                 default  meaning
=======================  =======  ===============================================================
CODITECT_A2A_TOKEN       none     the token or API key that the remote agent wants
CODITECT_A2A_PRIVATE     false    whether the remote agent may have a loopback or private address
=======================  =======  ===============================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from coditect.errors import SetupError
from coditect.settings.values import flag


@dataclass(frozen=True, slots=True)
class A2aSettings:
    """The checked settings for a remote A2A agent; a field's variable is `CODITECT_A2A_` and the field's name."""

    token: str | None = field(default=None, repr=False)
    private: bool = False


A2A_DEFAULTS = A2aSettings()


def a2a_settings(values: Mapping[str, str]) -> A2aSettings:
    """Read the settings for a remote A2A agent from environment variables, given as a mapping.

    Raises:
        SetupError: for a value that is wrong; the error names the variable, and never the token.
    """
    token = values.get("CODITECT_A2A_TOKEN") or None
    if token is not None and not (token.isascii() and token.isprintable()):
        raise SetupError("This is no token", variable="CODITECT_A2A_TOKEN", fix="printable ASCII, without line ends")
    return A2aSettings(token, flag(values, "CODITECT_A2A_PRIVATE", default=False))
