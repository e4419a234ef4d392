#!/usr/bin/env bash
# Runs `make unit` by each of the named versions of Python that is on PATH, in an environment of its own: pythons.sh 3.12 3.13
set -euo pipefail
cd "$(dirname "$0")/.."
said=() failed=no ran=no
for version in "$@"; do
    # the shims of pyenv are on PATH also for versions that are not chosen: only what runs counts
    if ! "python$version" -c '' 2>/dev/null; then
        said+=("$version: not on PATH")
        continue
    fi
    ran=yes
    [ -x ".venv-$version/bin/python" ] || "python$version" -m venv ".venv-$version"
    if "${MAKE:-make}" unit VENV=".venv-$version"; then
        said+=("$version: passed ($(".venv-$version/bin/python" -V))")
    else
        said+=("$version: FAILED") failed=yes
    fi
done
printf '%s\n' "${said[@]}"
if [ "$ran" = no ]; then
    echo "None of these versions is on PATH; with pyenv: pyenv install ... && pyenv local 3.11 3.12 3.13 3.14" >&2
    exit 1
fi
[ "$failed" = no ]
