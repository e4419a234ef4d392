"""The settings of the bridge to HTTP agents, read once by the program that serves them.

===========================  =====================  ============================================================
variable                     default                meaning
===========================  =====================  ============================================================
CODITECT_HTTP_HOSTS          none                   hosts of HTTP agents: names, or patterns, with commas
CODITECT_HTTP_PRIVATE        false                  such hosts may have loopback and private addresses
CODITECT_HTTP_LEASE_SECONDS  15                     how long a heartbeat of an HTTP agent counts, 1 to 3600
CODITECT_HTTP_CALLBACK_URL   the API's own address  the URL of this process, or of all, for HTTP agents' later answers
===========================  =====================  ============================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coditect.settings.values import flag, host_names, http_url, number

CALLBACK_FIX = "CODITECT_HTTP_CALLBACK_URL=https://api.example.com"


@dataclass(frozen=True, slots=True)
class HttpAgentSettings:
    """The checked settings of the HTTP agents' bridge; a field's variable is `CODITECT_HTTP_` and the field's name."""

    hosts: str = ""
    private: bool = False
    lease_seconds: float = 15.0
    callback_url: str | None = None


HTTP_DEFAULTS = HttpAgentSettings()


def http_agent_settings(values: Mapping[str, str]) -> HttpAgentSettings:
    """Read the settings of the bridge to HTTP agents from environment variables, given as a mapping.

    Raises:
        SetupError: for a value outside its range; the error names the variable.
    """
    return HttpAgentSettings(
        hosts=host_names(values, "CODITECT_HTTP_HOSTS") or HTTP_DEFAULTS.hosts,
        private=flag(values, "CODITECT_HTTP_PRIVATE", default=False),
        lease_seconds=number(values, "CODITECT_HTTP_LEASE_SECONDS", HTTP_DEFAULTS.lease_seconds, 1, 3_600),
        callback_url=http_url(values, "CODITECT_HTTP_CALLBACK_URL", fix=CALLBACK_FIX),
    )
