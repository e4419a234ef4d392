"""The settings of the HTTP API, read once by `coditect api`.

============================  ===========  ============================================================
variable                      default      meaning
============================  ===========  ============================================================
CODITECT_API_HOST             127.0.0.1    where the API listens; others than this machine need keys
CODITECT_API_PORT             8009         the port; 0 takes any
CODITECT_API_BODY_BYTES       4194304      the largest body of a request, 1024 to 1073741824
CODITECT_API_KEYS             none         the file of API keys
CODITECT_API_KEY              none         one key of an admin, 32 characters or more
CODITECT_API_HOSTS            none         names by which the API may be reached, with commas
CODITECT_API_RATE             none         the most requests of one caller, such as 100/s
CODITECT_API_OIDC_ISSUER      none         the OpenID Connect issuer whose tokens are taken
CODITECT_API_OIDC_AUDIENCE    coditect     for whom its tokens must be
CODITECT_API_OIDC_ROLES       roles        the claim with a caller's roles
CODITECT_API_WEBHOOK_KEY      none         key of webhooks' secrets, 32 characters or more
CODITECT_API_WEBHOOK_PRIVATE  false        whether webhooks may have private addresses
CODITECT_API_TRACE_URL        none         where a tracing tool shows the trace {trace}
============================  ===========  ============================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from coditect.errors import InputError, SetupError
from coditect.model.limits.rate import Rate
from coditect.settings.values import flag, host_names, http_url, whole

TRACE = "{trace}"
"""What stands for the id of a trace in `CODITECT_API_TRACE_URL`."""

SHORTEST_KEY = 32
ISSUER_FIX = "CODITECT_API_OIDC_ISSUER=https://login.example.com/realms/fleet"


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """The checked settings of the HTTP API; a field's variable is `CODITECT_API_` and the field's name."""

    host: str = "127.0.0.1"
    port: int = 8009
    body_bytes: int = 4 * 1024 * 1024
    keys: str | None = None
    key: str | None = field(default=None, repr=False)
    hosts: str | None = None
    rate: Rate | None = None
    oidc_issuer: str | None = None
    oidc_audience: str = "coditect"
    oidc_roles: str = "roles"
    webhook_key: str | None = field(default=None, repr=False)
    webhook_private: bool = False
    trace_url: str | None = None

    @property
    def secured(self) -> bool:
        """Tell whether the API demands a key or a token from its callers."""
        return (self.keys or self.key or self.oidc_issuer) is not None


API_DEFAULTS = ApiSettings()


def api_settings(values: Mapping[str, str]) -> ApiSettings:
    """Read the API's settings from environment variables, given as a mapping.

    Raises:
        SetupError: for a value that is wrong; the error names the variable, and what to write.
    """
    return ApiSettings(
        host=values.get("CODITECT_API_HOST") or API_DEFAULTS.host,
        port=whole(values, "CODITECT_API_PORT", API_DEFAULTS.port, 0, 65_535),
        body_bytes=whole(values, "CODITECT_API_BODY_BYTES", API_DEFAULTS.body_bytes, 1_024, 2**30),
        keys=values.get("CODITECT_API_KEYS") or None,
        key=_key(values, "CODITECT_API_KEY"),
        hosts=host_names(values, "CODITECT_API_HOSTS"),
        rate=_rate(values, "CODITECT_API_RATE"),
        oidc_issuer=http_url(values, "CODITECT_API_OIDC_ISSUER", fix=ISSUER_FIX),
        oidc_audience=values.get("CODITECT_API_OIDC_AUDIENCE") or API_DEFAULTS.oidc_audience,
        oidc_roles=values.get("CODITECT_API_OIDC_ROLES") or API_DEFAULTS.oidc_roles,
        webhook_key=values.get("CODITECT_API_WEBHOOK_KEY") or None,
        webhook_private=flag(values, "CODITECT_API_WEBHOOK_PRIVATE", default=False),
        trace_url=_trace_url(values, "CODITECT_API_TRACE_URL"),
    )


def _key(values: Mapping[str, str], name: str) -> str | None:
    text = values.get(name) or None
    if text is not None and not (
        len(text) >= SHORTEST_KEY and text.isascii() and text.isprintable() and " " not in text
    ):
        raise SetupError("An API key is too short or no word", variable=name, fix=f"{name}=$(openssl rand -hex 32)")
    return text


def _rate(values: Mapping[str, str], name: str) -> Rate | None:
    text = values.get(name)
    if not text:
        return None
    try:
        return Rate(text)
    except InputError as error:
        raise SetupError("A setting is no rate", variable=name, given=text, fix=f"{name}=100/s, or 600/m") from error


def _trace_url(values: Mapping[str, str], name: str) -> str | None:
    fix = f"{name}=http://localhost:16686/trace/{TRACE}"
    url = http_url(values, name, fix=fix)
    if url is not None and TRACE not in url:
        raise SetupError(f"The address of a trace has {TRACE} in place of its id", variable=name, given=url, fix=fix)
    return url
