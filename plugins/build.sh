#!/usr/bin/env bash
# Builds every provider of this folder and puts their files together, as they come with Keywheel:
# $CARGO_TARGET_DIR/providers/<service>.wasm, and <service>.toml of the template providers.
# Writes nothing elsewhere.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../target}
built=$target/wasm32-wasip2/plugin
providers=$target/providers

crates=()
for manifest in "$here"/*/Cargo.toml; do
    crates+=("$(basename "$(dirname "$manifest")")")
done
(cd "$here" && CARGO_TARGET_DIR=$target cargo build --quiet --locked --target wasm32-wasip2 \
    --profile plugin --lib "${crates[@]/#/--package=}")

mkdir -p "$providers"
# put FROM TO: nothing where it is there already; otherwise whole or not at all, for a daemon may
# be looking.
put() {
    if cmp --silent "$1" "$2"; then return; fi
    cp "$1" "$2.tmp"
    mv "$2.tmp" "$2"
}
for crate in "${crates[@]}"; do
    put "$built/${crate//-/_}.wasm" "$providers/$crate.wasm"
done
for template in "$here"/template-provider/providers/*.toml; do
    [ ! -e "$template" ] || put "$template" "$providers/$(basename "$template")"
done
put "$here/catalogue.json" "$providers/catalogue.json"
