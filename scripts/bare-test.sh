#!/usr/bin/env bash
# Installs a bare Debian into the folder $1, with the three programs that README asks for, and runs the commands of
# README's first section in a fresh clone there: all, or the targets $2... Each line shows the seconds since the clone.
# On a quiet machine `make demo` fails here if its first task is not done 60 s after the clone.
# All processes and mounts are in namespaces of their own, which end with the commands.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/apt.sh
folder="$1"
shift
release=bookworm
first_task_seconds=60

if [ "$(id -u)" -ne 0 ]; then
    echo "Installing a Debian needs root: sudo make bare-test" >&2
    exit 1
fi
command -v debootstrap >/dev/null || apt_install debootstrap || {
    echo "Missing: debootstrap. Debian: sudo apt-get install debootstrap" >&2
    exit 1
}

commands() {
    local command
    sed -n '/^## Two commands/,/^## /p' README.md | grep -oE '^make [a-z]+' | while read -r command; do
        if [ $# -eq 0 ] || [[ " $* " == *" ${command#make } "* ]]; then echo "$command"; fi
    done
}

# Shows the lines of the command $1 with the seconds since the clone; of the demo, when its first task was done.
show() {
    local line first=""
    while IFS= read -r line; do
        printf '%5d s  %s\n' "$SECONDS" "$line"
        if [ -z "$first" ] && [[ "$line" =~ " s  submitted ".*" done "[1-9] ]]; then first="$SECONDS"; fi
    done
    if [ "$1" != "make demo" ]; then return; fi
    echo "== The first task was done ${first:-never} s after the clone, bound $first_task_seconds s ($machine machine)"
    [ "$machine" = busy ] || [ "${first:-$SECONDS}" -le "$first_task_seconds" ]
}

# The packages come from where this machine has them.
mirror="${DEBIAN_MIRROR:-$(apt-get update --print-uris 2>/dev/null |
    sed -nE "s|^'([^']*)/dists/$release/InRelease'.*|\1|p" | head -n 1)}"
# The namespaces of an earlier run ended with it, so nothing is mounted below.
rm -rf "$folder"
mkdir -p "$folder"
tree="$(cd "$folder" && pwd)"
trap 'rm -rf "$tree"' EXIT
echo "Installing a bare Debian into $folder"
debootstrap --variant=minbase --include=python3,make,git "$release" "$tree" ${mirror:+"$mirror"} >"$tree.log" 2>&1 || {
    tail -n 15 "$tree.log" >&2
    exit 1
}
printf '#!/bin/sh\nexit 101\n' >"$tree/usr/sbin/policy-rc.d" # a package must not start its server on this machine's ports
chmod +x "$tree/usr/sbin/policy-rc.d"

environment=(HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 TERM="${TERM:-dumb}")
while IFS= read -r variable; do
    environment+=("$variable")
done < <(env | grep -E '^(PIP_[A-Z_]+|[a-zA-Z]+_proxy|[A-Z]+_PROXY)=' || true)
for path in /etc/hosts /etc/resolv.conf /etc/pip.conf "${PIP_FIND_LINKS:-}"; do
    if [ -n "$path" ] && [ -e "$path" ]; then
        mkdir -p "$tree$(dirname "$path")"
        cp -rL "$path" "$tree$(dirname "$path")/"
    fi
done
certificates="${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}" # Debian's packages write a file of this name, too
if [ -e "$certificates" ]; then
    cp -L "$certificates" "$tree/root/certificates.crt"
    environment+=(PIP_CERT=/root/certificates.crt)
fi

machine=busy
if awk -v processors="$(nproc)" '{ exit $1 >= processors }' /proc/loadavg; then machine=quiet; fi
SECONDS=0
git clone --quiet "file://$(git rev-parse --show-toplevel)" "$tree/root/coditect"
commands "$@" | while read -r command; do
    echo "== $command"
    unshare --mount --pid --ipc --fork --kill-child bash -euc '
        mount --make-rprivate / && mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && mount --rbind /sys "$1/sys"
        exec chroot "$1" env -i "${@:3}" bash -c "cd /root/coditect && $2"
    ' inside "$tree" "$command" "${environment[@]}" </dev/null 2>&1 | show "$command"
    echo "== $command: exit 0, $SECONDS s after the clone"
done
