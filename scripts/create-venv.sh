#!/usr/bin/env bash
# Creates or renews the virtual environment $1 from the lock file $2: every package pinned, every file hashed.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${1:-.venv}"
lock="${2:-requirements-dev.lock}"
source scripts/apt.sh

find_python() {
    local name
    for name in "${PYTHON:-}" python3.11 python3.12 python3.13 python3.14 python3 python; do
        if [ -n "$name" ] && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    echo "Coditect needs Python 3.11 or newer. Debian: sudo apt-get install python3 python3-venv; Fedora: sudo dnf install python3.11; macOS: brew install python@3.11" >&2
    return 1
}

python="$(find_python)"
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
    apt_install "python$version-venv" || {
        echo "The module venv is missing. Debian: sudo apt-get install python$version-venv" >&2
        exit 1
    }
fi

if ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    "$python" -m venv --clear "$venv"
fi
pip=("$venv/bin/python" -m pip --quiet --disable-pip-version-check)
echo "Installing the locked packages into $venv"
"${pip[@]}" install --require-hashes --no-deps --requirement "$lock"
"${pip[@]}" install --no-deps --no-build-isolation --editable .
