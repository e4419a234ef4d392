"""The settings of the HTTP API, read once by `coditect api`.

===========================  ===========  ============================================================
variable                     default      meaning
===========================  ===========  ============================================================
CODITECT_API_HOST            127.0.0.1    where the API listens
CODITECT_API_PORT            8009         the port; 0 takes any
CODITECT_API_BODY_BYTES      4194304      the largest body of a request, 1024 to 1073741824
===========================  ===========  ============================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coditect.settings.values import whole


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """The checked settings of the HTTP API; a field's variable is `CODITECT_API_` and the field's name."""

    host: str = "127.0.0.1"
    port: int = 8009
    body_bytes: int = 4 * 1024 * 1024


API_DEFAULTS = ApiSettings()


def api_settings(values: Mapping[str, str]) -> ApiSettings:
    """Read the API's settings from the variables of a program.

    Raises:
        SetupError: for a value outside its range; the error names the variable.
    """
    return ApiSettings(
        host=values.get("CODITECT_API_HOST", API_DEFAULTS.host),
        port=whole(values, "CODITECT_API_PORT", API_DEFAULTS.port, 0, 65_535),
        body_bytes=whole(values, "CODITECT_API_BODY_BYTES", API_DEFAULTS.body_bytes, 1_024, 2**30),
    )
