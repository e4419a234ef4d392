"""What `make api-fuzz` changes in the requests that schemathesis makes: nobody waits for minutes."""

from __future__ import annotations

import re
from typing import Any

import schemathesis

SPAN = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h|d)")
PATIENT = ("/v1/broadcasts", "/v1/broadcasts/stream", "/v1/locks")
"""The paths that wait for the `timeout` in their body."""


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Let a request that would wait for an end wait for some milliseconds; what is no duration stays."""
    wait = (case.query or {}).get("wait")
    if isinstance(wait, str) and SPAN.fullmatch(wait):
        case.query["wait"] = "5ms"
    if case.path in PATIENT and isinstance(case.body, dict):
        timeout = case.body.get("timeout", "30s")
        if isinstance(timeout, str) and SPAN.fullmatch(timeout):
            case.body["timeout"] = "5ms"
