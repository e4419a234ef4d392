#!/usr/bin/env bash
# Builds deploy/Dockerfile as localhost/coditect and localhost/coditect-fleet, without a registry: over Debian packages,
# by podman, in a store of its own below $1. The tests of `make image` look at what it made.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p "$1"
folder="$(realpath "$1")"
source scripts/apt.sh

if [ "$(id -u)" -ne 0 ]; then
    echo "Containers on a store of their own need root: sudo make image. With Docker: docker build --file deploy/Dockerfile ." >&2
    exit 1
fi
missing=()
for program in mmdebstrap podman runc; do
    command -v "$program" >/dev/null || missing+=("$program")
done
if [ "${#missing[@]}" -gt 0 ] && ! apt_install "${missing[@]}"; then
    echo "Missing: ${missing[*]}. Debian: sudo apt-get install ${missing[*]}" >&2
    exit 1
fi

podman() { command podman --root "$folder/store" --runroot "$folder/run" --runtime runc --cgroup-manager cgroupfs "$@"; }

# debian NAME [option...]: an image of Debian 12 made by mmdebstrap, once; `make clean` removes it.
debian() {
    local name="localhost/coditect-$1" log="$folder/$1.log"
    shift
    podman image exists "$name" && return
    echo "Making $name of Debian's packages"
    mmdebstrap --quiet --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        "$@" bookworm "$folder/base.tar" 2>"$log" || { tail -n 15 "$log" >&2; exit 1; }
    podman import --quiet "$folder/base.tar" "$name" >/dev/null
    rm "$folder/base.tar"
}

debian builder --variant=minbase --include=python3-venv
# Unpacked and never configured: what is left is Python with its libraries, and no shell.
debian base --variant=extract --include=python3-minimal,libpython3-stdlib,ca-certificates,tzdata \
    --customize-hook='cd "$1" && rm -rf usr/share/doc usr/share/man usr/share/locale usr/share/perl5' \
    --customize-hook='cat "$1"/usr/share/ca-certificates/mozilla/*.crt > "$1/etc/ssl/certs/ca-certificates.crt"' \
    --customize-hook='ln -s /etc/ssl/certs/ca-certificates.crt "$1/usr/lib/ssl/cert.pem"'

# The build finds packages where this machine does.
see=()
for file in /etc/pip.conf /etc/ssl/certs/ca-certificates.crt; do
    if [ -e "$file" ]; then see+=(--volume "$file:$file:ro"); fi
done
# build TARGET NAME
build() {
    echo "Building localhost/$2"
    podman build --quiet --format docker --isolation chroot --network host "${see[@]}" --target "$1" \
        --build-arg BUILDER=localhost/coditect-builder --build-arg BASE=localhost/coditect-base \
        --build-arg VERSION="$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)" \
        --build-arg REVISION="$(git rev-parse HEAD 2>/dev/null || echo unknown)" \
        --file deploy/Dockerfile --tag "localhost/$2" . >/dev/null
}

build runtime coditect
build fleet coditect-fleet
