#!/usr/bin/env bash
# Asks every operation of the HTTP API what its schema allows and forbids, for $2 seconds, by schemathesis.
# A fleet of its own answers: RabbitMQ, Redis, a dispatcher, an agent and `coditect api`, in a folder that goes again.
set -euo pipefail
cd "$(dirname "$0")/.."
root="$PWD"
bin="$(cd "$1" && pwd)"
seconds="${2:-90}"
folder="$(mktemp -d)"

finish() {
    (cd "$folder" && "$bin/coditect" down) >/dev/null 2>&1 || true
    rm -rf "$folder"
}
trap finish EXIT

unset CODITECT_AMQP_URL CODITECT_REDIS_URL CODITECT_MANAGEMENT_URL CODITECT_STORE_URL
export CODITECT_API_WEBHOOK_KEY="a key that signs nothing but the webhooks of this run"
CODITECT_API_PORT="$("$bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
export CODITECT_API_PORT
(cd "$folder" && "$bin/coditect" up --detach "$root/agents/load.py=1" >/dev/null)

# Left out: `GET /v1/events`, which never ends, `/v1/tasks/stream`, which ends with its task, and `/v1/scorecard`, which
# measures the whole fleet for five seconds.
# Not checked: whether everything that fits the schema is taken, since what a workflow, a filter or an expression means
# is checked behind it, and refused with 422; and whether what was made is still there, since a task may have ended
# before it is canceled, which is a 404.
cd "$folder"
SCHEMATHESIS_HOOKS="$root/tests/fuzz/hooks.py" PYTHONPATH="$root" "$bin/schemathesis" run \
    "http://127.0.0.1:$CODITECT_API_PORT/openapi.json" \
    --exclude-name 'GET /v1/events' --exclude-path /v1/tasks/stream --exclude-path /v1/scorecard \
    --exclude-checks positive_data_acceptance,ensure_resource_availability \
    --max-time "$seconds" --request-timeout 30 --generation-database none --warnings off --no-color || {
    status=$?
    tail -n 20 "$folder/.coditect/log/api.log" | cut -c1-1000
    exit "$status"
}
