"""The dashboard's files, with headers that let a browser run and show nothing else."""

from __future__ import annotations

from os import PathLike, stat_result

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
"""The content security policy: only files of this origin, no inline script or style, no evaluation of text."""
HEADERS = (
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cache-control", "no-cache"),  # asked again each time, answered with 304 as long as the file is the same
)


class DashboardFiles(StaticFiles):
    """The web application that serves a folder's files, with security headers; for the folder itself `index.html`."""

    def __init__(self, directory: PathLike[str]) -> None:
        super().__init__(directory=directory, html=True)

    def file_response(
        self, full_path: str | PathLike[str], stat_result: stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Return a file, or 304 when the browser has it, with the headers for security and caching."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(dict(HEADERS))
        return response
