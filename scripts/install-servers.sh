#!/usr/bin/env bash
# Installs RabbitMQ and Redis, and the programs $@ that the tests run, where apt can; otherwise says once what to do.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/apt.sh

PATH="$PATH:/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin:/opt/homebrew/bin:/usr/local/opt/rabbitmq/sbin"
has() { command -v "$1" >/dev/null 2>&1; }

missing=()
if [ -z "${CODITECT_AMQP_URL:-}" ] && ! has rabbitmq-server; then missing+=(rabbitmq-server); fi
if [ -z "${CODITECT_REDIS_URL:-}" ] && ! has redis-server; then missing+=(redis-server); fi
wanted=("${missing[@]}")
for tool in "$@"; do
    case "$tool" in amqp-tools) program=amqp-publish ;; *) program="$tool" ;; esac
    if ! has "$program" && can_install; then wanted+=("$tool"); fi
done
if [ "${#wanted[@]}" -eq 0 ] || apt_install "${wanted[@]}"; then exit 0; fi
if [ "${#missing[@]}" -eq 0 ]; then exit 0; fi

cat >&2 <<TEXT
Missing: ${missing[*]}. Install them, then run this again:
  Debian, Ubuntu   sudo apt-get install rabbitmq-server redis-server amqp-tools curl
  Fedora           sudo dnf install rabbitmq-server redis
  macOS            brew install rabbitmq redis
  Docker           docker run -d -p 127.0.0.1:5672:5672 rabbitmq:4 && docker run -d -p 127.0.0.1:6379:6379 redis:7
                   export CODITECT_AMQP_URL=amqp://guest:guest@127.0.0.1:5672/ CODITECT_REDIS_URL=redis://127.0.0.1:6379/0
TEXT
exit 1
