"""What is here installs libraries of other languages: `make languages` runs it, and no other target."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("CODITECT_LANGUAGES") else ["test_*"]
