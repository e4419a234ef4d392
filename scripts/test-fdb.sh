#!/usr/bin/env bash
# Runs the store's contract suite on a real FoundationDB: the cluster of FDB_CLUSTER_FILE, else one in a container.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${1:-.venv/bin/python}"
image=foundationdb/foundationdb:7.3.79
port=4689

run_suite() {
    "$python" -m pytest tests/contract/store -k "fdb and not stub"
}

if [ -n "${FDB_CLUSTER_FILE:-}" ]; then
    run_suite
    exit
fi
if ! docker info >/dev/null 2>&1; then
    echo "SKIPPED: no FoundationDB here. Set FDB_CLUSTER_FILE (and install the client package of its version), or start Docker."
    exit 0
fi

folder="$(mktemp -d)"
container="$(docker run --detach --rm --network host --env FDB_NETWORKING_MODE=host --env FDB_PORT="$port" "$image")"
trap 'docker stop "$container" >/dev/null; rm -rf "$folder"' EXIT
echo "docker:docker@127.0.0.1:$port" > "$folder/fdb.cluster"
for _ in $(seq 60); do
    docker exec "$container" fdbcli --timeout 5 --exec "configure new single memory" >/dev/null 2>&1 || true
    if docker exec "$container" fdbcli --timeout 5 --exec "status minimal" 2>/dev/null | grep -q "is available"; then
        ready=yes
        break
    fi
    sleep 1
done
if [ -z "${ready:-}" ]; then
    echo "FoundationDB did not become available in its container; see: docker logs $container" >&2
    exit 1
fi
if ! ldconfig -p | grep -q libfdb_c; then
    docker cp --follow-link "$container:/usr/lib/libfdb_c.so" "$folder/libfdb_c.so"
    export LD_LIBRARY_PATH="$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
fi
export FDB_CLUSTER_FILE="$folder/fdb.cluster"
run_suite
