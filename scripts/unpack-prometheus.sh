#!/usr/bin/env bash
# Unpacks Debian's Prometheus into folder $1, and prints the folder of its programs, prometheus and promtool.
# Installs nothing and starts nothing. CODITECT_PROMETHEUS names a folder that has them already.
set -euo pipefail
for folder in "${CODITECT_PROMETHEUS:-}" "$(dirname "$(command -v prometheus || true)")" "$1/usr/bin"; do
    if [ -n "$folder" ] && [ -x "$folder/prometheus" ] && [ -x "$folder/promtool" ]; then
        cd "$folder" && pwd
        exit 0
    fi
done
for program in apt-get dpkg-deb; do
    command -v "$program" >/dev/null || {
        echo "Prometheus is unpacked from Debian's package by $program, which is not here. CODITECT_PROMETHEUS names the folder of prometheus and promtool." >&2
        exit 1
    }
done
mkdir -p "$(dirname "$1")"
tree="$(cd "$(dirname "$1")" && pwd)/$(basename "$1")"
work="$(mktemp -d "$tree.XXXXXX")"
trap 'rm -rf "$work"' EXIT
echo "Unpacking Debian's Prometheus into $tree" >&2
(cd "$work" && { apt-get download -qq prometheus || { apt-get update -qq && apt-get download -qq prometheus; }; }) >"$work/log" 2>&1 || {
    tail -n 15 "$work/log" >&2
    echo "Prometheus could not be had from Debian. CODITECT_PROMETHEUS names the folder of prometheus and promtool." >&2
    exit 1
}
mkdir "$work/tree"
dpkg-deb -x "$work"/prometheus_*.deb "$work/tree"
rm -rf "$work/tree"/{etc,lib,var}
mv -T "$work/tree" "$tree" 2>/dev/null || [ -x "$tree/usr/bin/prometheus" ] # another run was faster
echo "$tree/usr/bin"
