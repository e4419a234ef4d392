from __future__ import annotations

from tests.servers import servers

__all__ = ["servers"]
