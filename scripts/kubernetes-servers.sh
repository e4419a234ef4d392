#!/usr/bin/env bash
# Builds a Kubernetes control plane from the Go module proxy into folder $1, once, and prints the folder of its
# programs: etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubectl and kwok, which plays the nodes.
# Installs bubblewrap and OpenSSL, which the tests need beside them, where apt can.
# Beside it, in crds/ and stages/: the CRDs of KEDA, the Prometheus operator, cert-manager and the Gateway API, and what kwok's nodes and pods do.
set -euo pipefail
KUBERNETES=v1.37.2 ETCD=v3.7.3 KWOK=v0.8.0 KEDA=v2.21.0 PROMETHEUS_OPERATOR=v0.85.0 \
    CERT_MANAGER=v1.21.2 GATEWAY_API=v1.6.3
mkdir -p "$1"
tree="$(cd "$1" && pwd)"
mark="$KUBERNETES $ETCD $KWOK $KEDA $PROMETHEUS_OPERATOR $CERT_MANAGER $GATEWAY_API"
say() { echo "$*" >&2; }

source "$(dirname "$0")/apt.sh"
missing=()
for program in bubblewrap:bwrap openssl:openssl; do
    command -v "${program#*:}" >/dev/null || missing+=("${program%:*}")
done
if [ "${#missing[@]}" -gt 0 ] && ! apt_install "${missing[@]}" >&2; then
    say "The tests need ${missing[*]}: sudo apt-get install ${missing[*]}"
    exit 1
fi

if [ "$(cat "$tree/built" 2>/dev/null)" = "$mark" ]; then
    echo "$tree/bin"
    exit 0
fi
if ! command -v go >/dev/null; then
    say "Kubernetes is built by Go 1.26 or later, which is not here: https://go.dev/doc/install"
    exit 1
fi
export CGO_ENABLED=0 GOFLAGS="-mod=mod -trimpath -p=${BUILD_JOBS:-2}"

quietly() {
    if ! "$@" >"$tree/log" 2>&1; then
        tail -n 20 "$tree/log" >&2
        exit 1
    fi
}

# module_part MODULE@VERSION PART: the path of a module's GoMod or Dir, downloaded outside of any module of ours.
module_part() { (cd / && go mod download -json "$1") | sed -nE "s/^\s*\"$2\": \"(.*)\",?$/\1/p"; }

# build NAME MODULE@VERSION PACKAGE…: by a go.mod of its own, since a common one would mix dependencies' versions.
build() {
    local name="$1" module="${2%@*}" version="${2#*@}" gomod package program
    gomod="$(module_part "$2" GoMod)"
    shift 2
    mkdir -p "$tree/$name" "$tree/bin"
    cd "$tree/$name"
    printf 'module coditect.test/%s\n\nrequire %s %s\n' "$name" "$module" "$version" >go.mod
    # Kubernetes replaces its parts by folders that its module lacks: the parts have modules of their own, v0 for v1.
    sed -nE "s|^\s*(k8s.io/[^ ]+) => ./staging/.*|replace \1 => \1 v0.${version#v1.}|p" "$gomod" >>go.mod
    for package in "$@"; do
        program="$(basename "$package")"
        case "$program" in v3) program="$name" ;; esac
        say "Building $program $version"
        quietly go build -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$version" \
            -o "$tree/bin/$program" "$package"
    done
}

# copy MODULE@VERSION FOLDER NAME: the YAML files of a module's folder.
copy() {
    local folder
    folder="$(module_part "$1" Dir)/$2"
    mkdir -p "$tree/$3"
    cp --no-preserve=mode "$folder"/*.yaml "$tree/$3/"
}

say "Building Kubernetes $KUBERNETES into $tree: once, up to an hour on two cores"
copy "github.com/kedacore/keda/v2@$KEDA" config/crd/bases crds/keda
copy "github.com/prometheus-operator/prometheus-operator@$PROMETHEUS_OPERATOR" \
    example/prometheus-operator-crd crds/prometheus-operator
copy "github.com/cert-manager/cert-manager@$CERT_MANAGER" deploy/crds crds/cert-manager
copy "sigs.k8s.io/gateway-api@$GATEWAY_API" config/crd/standard crds/gateway-api
for stage in node/fast node/heartbeat-with-lease pod/fast volume/fast; do
    copy "sigs.k8s.io/kwok@$KWOK" "kustomize/stage/$stage" "stages/$stage"
done
build etcd "go.etcd.io/etcd/server/v3@$ETCD" go.etcd.io/etcd/server/v3
build kwok "sigs.k8s.io/kwok@$KWOK" sigs.k8s.io/kwok/cmd/kwok
build kubernetes "k8s.io/kubernetes@$KUBERNETES" \
    k8s.io/kubernetes/cmd/{kube-apiserver,kube-controller-manager,kube-scheduler,kubectl}
echo "$mark" >"$tree/built"
echo "$tree/bin"
