#!/usr/bin/env bash
# The store, the workflows, chaos and the benchmarks on a real FoundationDB: the cluster of FDB_CLUSTER_FILE, else a
# container where CODITECT_TEST_SERVERS=containers and Docker answers, else a private fdbserver on PATH.
# Chaos and the workflow benchmark always start private clusters of their own.
#
#   scripts/test-fdb.sh [PYTHON] [contract|workflows|chaos|bench]...      all four by default
set -euo pipefail
cd "$(dirname "$0")/.."
python="${1:-.venv/bin/python}"
shift || true
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(contract workflows chaos bench)

skip() {
    echo "SKIPPED: $1"
    exit 0
}

"$python" -c 'import fdb' 2>/dev/null || skip "FoundationDB's binding is missing. Install the extra fdb."
"$python" -c 'import ctypes; ctypes.CDLL("libfdb_c.so")' 2>/dev/null ||
    skip "libfdb_c is missing. Install FoundationDB's 7.3 client package, or add the library's folder to LD_LIBRARY_PATH."
"$python" -m tests.foundationdb --there ||
    skip "no FoundationDB here. Set FDB_CLUSTER_FILE, install FoundationDB's 7.3 server package, or start Docker and set CODITECT_TEST_SERVERS=containers."

on_cluster() { # runs a command on one cluster, a private one of three processes
    "$python" -m tests.foundationdb --processes 3 -- "$@"
}

alone() { # says whether a part that needs servers of its own can run
    "$python" -m tests.foundationdb --private && return
    echo "SKIPPED: $1 starts clusters of its own, and there is no fdbserver on PATH."
    return 1
}

for part in "${parts[@]}"; do
    echo "== $part"
    case "$part" in
    contract)
        on_cluster "$python" -m pytest -p no:randomly tests/contract/store -k "fdb and not stub"
        ;;
    workflows)
        export CODITECT_TEST_STORE=fdb
        on_cluster "$python" -m pytest -n 2 -p no:randomly -rs -m "not proof and not endurance" \
            --hypothesis-profile=quick --timeout 600 \
            tests/unit/{agent,api,client,dispatcher,goals,integrations,layers,operations,resilience,sync,testing,workflow} \
            tests/unit/agents/test_{demo_flow,fix_lock}.py tests/unit/examples tests/unit/telemetry/test_tracing.py \
            tests/contract/graph tests/integration/client/test_workflows.py
        unset CODITECT_TEST_STORE
        ;;
    chaos)
        if alone chaos; then
            "$python" -m chaos --store fdb --minutes "${MINUTES:-2}" --folder .coditect/chaos-fdb
        fi
        ;;
    bench)
        on_cluster "$python" -m benchmarks.store --store sqlite --store fdb
        if alone "the workflow benchmark"; then
            "$python" -m benchmarks --only workflow-stores
        fi
        ;;
    *)
        echo "There is no part $part: contract, workflows, chaos, bench" >&2
        exit 2
        ;;
    esac
done
