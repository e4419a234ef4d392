#!/usr/bin/env bash
# Installs Chromium where apt can; otherwise says once what to do.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/apt.sh

if [ -n "${CODITECT_CHROMIUM:-}" ]; then exit 0; fi
for name in chromium chromium-browser google-chrome; do
    if command -v "$name" >/dev/null 2>&1; then exit 0; fi
done
if apt_install chromium; then exit 0; fi
echo "Missing: Chromium. Install it, or set CODITECT_CHROMIUM=/path/to/it, then run this again." >&2
exit 1
