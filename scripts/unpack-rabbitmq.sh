#!/usr/bin/env bash
# Unpacks RabbitMQ $1 and its Erlang from the packages of Debian $2 into folder $3, and prints the folder of the
# broker's programs, for CODITECT_RABBITMQ_SBIN. Installs nothing, mounts nothing, needs no root: the programs
# run through the loader and the libraries they were built for, which are unpacked beside them.
set -euo pipefail
version="$1" release="$2"
mkdir -p "$(dirname "$3")"
tree="$(cd "$(dirname "$3")" && pwd)/$(basename "$3")"
sbin="$tree/usr/lib/rabbitmq/lib/rabbitmq_server-$version/sbin"
keys="${DEBIAN_KEYRING:-/usr/share/keyrings/debian-archive-keyring.gpg}"

fail() {
    echo "$1" >&2
    echo "Or have a RabbitMQ $version elsewhere: CODITECT_RABBITMQ_SBIN names the folder of its rabbitmq-server." >&2
    exit 1
}

# The programs are told where they are, so a folder that was moved is unpacked again.
if [ "$(cat "$tree/unpacked" 2>/dev/null)" = "$tree" ]; then
    echo "$sbin"
    exit 0
fi
case "$tree" in *[[:space:]]*) fail "RabbitMQ's scripts cannot run from a path with spaces: $tree" ;; esac
for program in apt-get dpkg-deb; do
    command -v "$program" >/dev/null || fail "Debian's packages need $program, which is not here."
done
[ -r "$keys" ] || fail "Debian's keys are missing: $keys. sudo apt-get install debian-archive-keyring"

work="$(mktemp -d "$tree.XXXXXX")"
trap 'rm -rf "$work"' EXIT
log="$work/log"
mkdir -p "$work/apt/lists/partial" "$work/apt/archives/partial" "$work/tree"
: >"$work/apt/status"

# An apt of its own, beside the machine's: nothing counts as installed, so everything that is needed is fetched.
apt_here() {
    apt-get -qq -o Dir::Etc::sourcelist="$work/apt/sources.list" -o Dir::Etc::sourceparts=- \
        -o Dir::State="$work/apt" -o Dir::State::lists="$work/apt/lists" -o Dir::State::status="$work/apt/status" \
        -o Dir::Cache="$work/apt" -o Dir::Cache::archives="$work/apt/archives" -o APT::Sandbox::User= \
        -o APT::Install-Recommends=false -o Acquire::Languages=none "$@" >>"$log" 2>&1
}

mirrors() {
    if [ -n "${DEBIAN_MIRROR:-}" ]; then
        echo "$DEBIAN_MIRROR"
    else
        apt-get update --print-uris 2>/dev/null | sed -nE "s|^'([^']*)/dists/[a-z]+/InRelease'.*|\1|p" | sort -u
    fi
}

download() {
    local mirror
    for mirror in $(mirrors); do
        echo "deb [signed-by=$keys] $mirror $release main" >"$work/apt/sources.list"
        apt_here update && apt_here install --download-only --yes "rabbitmq-server=$version*" && return
    done
    tail -n 15 "$log" >&2
    fail "RabbitMQ $version could not be had from Debian $release. DEBIAN_MIRROR names a mirror that has it."
}

unpack() {
    local package
    for package in "$work"/apt/archives/{rabbitmq-server,erlang-,lib,zlib}*.deb; do
        dpkg-deb -x "$package" "$work/tree"
    done
    rm -rf "$work/tree"/{etc,var,usr/share}
}

# Every program of Erlang becomes a script that starts it by the loader unpacked with it.
use_own_libraries() {
    local loader libraries program
    loader="$(cd "$work/tree" && find usr/lib -name 'ld-linux*.so.*' -type f | head -n 1)"
    [ -n "$loader" ] || fail "The packages have no loader."
    libraries="$tree/$(dirname "$loader")"
    find "$work/tree/usr/lib/erlang" -type f -perm -u+x ! -name '*.so' | while read -r program; do
        [ "$(head -c 4 "$program" | tail -c 3)" = ELF ] || continue
        mv "$program" "$program.elf"
        cat >"$program" <<SCRIPT
#!/bin/sh
exec "$tree/$loader" --library-path "$libraries" --argv0 "\$0" "$tree${program#"$work/tree"}.elf" "\$@"
SCRIPT
        chmod +x "$program"
    done
}

say_where() {
    local erlang="$tree/usr/lib/erlang" scripts="$work/tree${sbin#"$tree"}"
    sed -i "s|ROOTDIR=/usr/lib/erlang|ROOTDIR=$erlang|" "$work/tree/usr/lib/erlang/bin/erl"
    # Every script of RabbitMQ reads this file first, and finds Erlang by PATH.
    echo "PATH=\"$erlang/bin:\$PATH\"" >>"$scripts/rabbitmq-defaults"
    ln -s "$erlang/bin/epmd" "$scripts/epmd"
    echo "$tree" >"$work/tree/unpacked"
}

echo "Unpacking RabbitMQ $version from Debian $release into $tree" >&2
download
unpack
use_own_libraries
say_where
rm -rf "$tree"
mv -T "$work/tree" "$tree"
echo "$sbin"
