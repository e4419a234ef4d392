"""The image needs podman and root: `make image` tests it, and no other target."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("CODITECT_IMAGE") else ["test_image*"]
