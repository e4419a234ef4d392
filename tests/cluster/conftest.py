"""The tests here start three RabbitMQ nodes, and take minutes: `make cluster-test` alone runs them."""

from __future__ import annotations

import os

collect_ignore_glob = [] if os.environ.get("CODITECT_CLUSTER") else ["test_*"]
