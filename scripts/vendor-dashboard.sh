#!/usr/bin/env bash
# Writes the dashboard's libraries again from the npm registry, at the versions below. What the dashboard serves is
# committed: this runs only to change a version. Their bare imports become relative ones, since a page whose policy
# forbids inline scripts cannot hold an import map; the references to source maps, which are not served, go.
set -euo pipefail

PREACT=11.2.0
HTM=3.1.1

vendor="$(cd "$(dirname "$0")/.." && pwd)/coditect/api/dashboard/vendor"
packages="$(mktemp -d)"
trap 'rm -rf "$packages"' EXIT

npm install --prefix "$packages" --no-save --ignore-scripts --no-audit --no-fund "preact@$PREACT" "htm@$HTM"
modules="$packages/node_modules"

plain() { sed -e 's#from"preact"#from"./preact.mjs"#' -e '/^\/\/# sourceMappingURL=/d' "$1" > "$vendor/$2"; }
plain "$modules/preact/dist/preact.mjs" preact.mjs
plain "$modules/preact/hooks/dist/hooks.mjs" hooks.mjs
plain "$modules/htm/dist/htm.mjs" htm.mjs
cp "$modules/preact/LICENSE" "$vendor/LICENSE.preact"
cp "$modules/htm/LICENSE" "$vendor/LICENSE.htm"
cat > "$vendor/README.md" <<END
# Libraries of the dashboard

Written by \`scripts/vendor-dashboard.sh\` from the npm registry; see ADR 29.

| file | package | version | licence |
|---|---|---|---|
| \`preact.mjs\`, \`hooks.mjs\` | preact | $PREACT | MIT, \`LICENSE.preact\` |
| \`htm.mjs\` | htm | $HTM | Apache-2.0, \`LICENSE.htm\` |
END
