#!/usr/bin/env bash
# Writes the lock files from pyproject.toml with uv: pinned, hashed, for every platform, without an index address.
set -euo pipefail
cd "$(dirname "$0")/.."
uv="${UV:-uv}"
compile=("$uv" pip compile --quiet --generate-hashes --universal --no-header --no-annotate
    --no-emit-index-url --no-emit-find-links --python-version 3.11)
"${compile[@]}" pyproject.toml --extra speed --extra dispatcher --extra fdb --extra api --extra metrics \
    --constraint requirements/constraints.txt --output-file requirements/runtime.lock
"${compile[@]}" pyproject.toml --all-extras --group dev --constraint requirements/runtime.lock --output-file requirements/dev.lock
"${compile[@]}" pyproject.toml --extra fleet --constraint requirements/dev.lock --output-file requirements/fleet.lock
"${compile[@]}" pyproject.toml --extra speed --extra dispatcher --extra api --extra mcp --extra fleet --group demo --constraint requirements/dev.lock --output-file requirements/demo.lock
"${compile[@]}" pyproject.toml --group package --constraint requirements/dev.lock --output-file requirements/package.lock
"${compile[@]}" pyproject.toml --extra speed --extra dispatcher --extra telemetry --extra api --group bench --constraint requirements/dev.lock --output-file requirements/bench.lock
