#!/usr/bin/env bash
# Builds build/my-service.wasm. The first time it installs the toolchain from package-lock.json,
# about 400 MB below node_modules; after that it needs no network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

command -v node >/dev/null || { echo 'Node.js is missing; hint: https://nodejs.org has it' >&2; exit 1; }
if ! cmp --silent package-lock.json node_modules/.installed; then
    npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
    cp package-lock.json node_modules/.installed
fi
exec node keywheel/build.mjs src/provider.js build/my-service.wasm
