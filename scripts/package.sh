#!/usr/bin/env bash
# Builds sdist and wheel into $2 with the tools in $1, the same bytes each time; writes the SBOM, and audits the lock.
set -euo pipefail
cd "$(dirname "$0")/.."
bin="$1" dist="${2:-dist}"
SOURCE_DATE_EPOCH="$(git log -1 --format=%ct 2>/dev/null || echo 1577836800)"
export SOURCE_DATE_EPOCH
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

rm -rf "$dist"
"$bin/python" -m hatchling build --directory "$dist" >/dev/null
"$bin/python" -m hatchling build --directory "$work/again" >/dev/null
for file in "$dist"/*; do
    cmp "$file" "$work/again/$(basename "$file")" || { echo "Not the same bytes: $file" >&2; exit 1; }
done

"$bin/cyclonedx-py" requirements requirements/runtime.lock --pyproject pyproject.toml --output-reproducible \
    --of JSON --output-file "$dist/sbom.cdx.json" 2>"$work/sbom.log" || { cat "$work/sbom.log" >&2; exit 1; }

"$bin/pip-audit" --disable-pip --require-hashes --requirement requirements/runtime.lock --format json \
    --output "$work/audit.json" 2>"$work/audit.log" || { cat "$work/audit.log" "$work/audit.json" >&2; exit 1; }
if grep -q skip_reason "$work/audit.json"; then
    echo "Audit: NOT DONE. The advisories of some packages could not be asked for:" >&2
    grep -o '"skip_reason": "[^"]*"' "$work/audit.json" | sed -n 1,3p >&2
    if [ "${AUDIT:-}" = required ]; then exit 1; fi
else
    echo "Audit: no known vulnerability in requirements/runtime.lock"
fi
ls -l "$dist"
