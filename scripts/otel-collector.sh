#!/usr/bin/env bash
# Builds an OpenTelemetry Collector from the Go module proxy into folder $1, once, and prints the path of the program.
# It takes OTLP and writes files: what the tests of tracing look at. Without Go it says so and fails.
set -euo pipefail
VERSION=v0.165.0 PROVIDERS=v1.71.0
mkdir -p "$1"
tree="$(cd "$1" && pwd)"
say() { echo "$*" >&2; }

if [ "$(cat "$tree/built" 2>/dev/null)" = "$VERSION" ]; then
    echo "$tree/dist/otelcol"
    exit 0
fi
if ! command -v go >/dev/null; then
    say "The collector is built by Go 1.25 or later, which is not here: https://go.dev/doc/install"
    exit 1
fi
export CGO_ENABLED=0 GOFLAGS="-mod=mod -buildvcs=false -p=${BUILD_JOBS:-2}"

quietly() {
    if ! nice "$@" >"$tree/log" 2>&1; then
        tail -n 20 "$tree/log" >&2
        exit 1
    fi
}

say "Building the OpenTelemetry Collector $VERSION into $tree: once, some minutes"
cat >"$tree/builder.yaml" <<EOF
dist: {name: otelcol, output_path: $tree/dist}
receivers:
  - gomod: go.opentelemetry.io/collector/receiver/otlpreceiver $VERSION
processors:
  - gomod: go.opentelemetry.io/collector/processor/batchprocessor $VERSION
  - gomod: go.opentelemetry.io/collector/processor/memorylimiterprocessor $VERSION
exporters:
  - gomod: go.opentelemetry.io/collector/exporter/otlpexporter $VERSION
  - gomod: github.com/open-telemetry/opentelemetry-collector-contrib/exporter/fileexporter $VERSION
providers:
  - gomod: go.opentelemetry.io/collector/confmap/provider/envprovider $PROVIDERS
  - gomod: go.opentelemetry.io/collector/confmap/provider/fileprovider $PROVIDERS
EOF
cd "$tree"
GOBIN="$tree/bin" quietly go install "go.opentelemetry.io/collector/cmd/builder@$VERSION"
quietly bin/builder --config builder.yaml --skip-compilation --skip-get-modules
cd dist
# The builder's own go.mod comes with tidying, which asks for the tests of every dependency; the proxy lacks some.
{
    printf 'module go.opentelemetry.io/collector/cmd/builder\n\ngo 1.25.0\n\nrequire (\n'
    for module in component confmap exporter extension processor receiver; do
        printf '\tgo.opentelemetry.io/collector/%s %s\n' "$module" "$PROVIDERS"
    done
    for module in connector otelcol service; do
        printf '\tgo.opentelemetry.io/collector/%s %s\n' "$module" "$VERSION"
    done
    sed -n 's/^  - gomod: /\t/p' ../builder.yaml
    printf ')\n'
} >go.mod
quietly go build -ldflags "-s -w" -o otelcol .
echo "$VERSION" >"$tree/built"
echo "$tree/dist/otelcol"
