#!/usr/bin/env bash
# Creates or renews the virtual environment $1 from the lock file $2: every package pinned, every file hashed. With an
# empty name in place of the lock file, it creates the environment only.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${1:-.venv}"
lock="${2-requirements/dev.lock}"
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
if [ -z "$lock" ]; then exit 0; fi
pip=("$venv/bin/python" -m pip --disable-pip-version-check)

# Installs the packages of the lock file whose numbers have the remainder $1.
install_half() {
    "${pip[@]}" install --no-compile --progress-bar off --require-hashes --no-deps \
        --requirement <(awk -v half="$1" '/^[a-z0-9]/ { number++ } number % 2 == half' "$lock")
}

# Counts the packages that pip fetches: on a terminal in place, elsewhere every tenth. What is no count is an error.
show_progress() {
    local line name done=0 total="$1"
    while IFS= read -r line; do
        case "$line" in
        Collecting* | "Requirement already satisfied"*)
            done=$((done + 1))
            name="${line#Collecting }" name="${name#Requirement already satisfied: }" name="${name%% *}"
            if [ -t 1 ]; then
                printf '\r  %d of %d: %s\033[K' "$done" "$total" "$name"
            elif [ $((done % 10)) = 0 ]; then
                printf '  %d of %d: %s\n' "$done" "$total" "$name"
            fi
            ;;
        Ignoring*) total=$((total - 1)) ;;
        esac
    done
    if [ -t 1 ]; then printf '\r\033[K'; fi
}

total="$(grep -cE '^[a-z0-9]' "$lock")"
echo "Installing $total locked packages into $venv"
# pip fetches one package after the other and waits for each: two halves need half the time. Without their
# dependencies they are independent. Compiled afterwards on all processors; pip would use one.
(install_half 0 & first=$!; install_half 1 && wait "$first") | show_progress "$total"
"${pip[@]}" --quiet install --no-deps --no-build-isolation --editable .
"$venv/bin/python" -m compileall -q -j 0 "$venv/lib" >/dev/null || true # templates of some packages do not parse
echo "Installed into $venv"
