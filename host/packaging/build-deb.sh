#!/usr/bin/env bash
# Makes the package of a binary that is built already. Usage: build-deb.sh BINARY OUT
# What goes into it is put together in target/package; host/Cargo.toml says what goes where.
set -euo pipefail
binary=$(realpath "$1")
out=$2
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
target=$(realpath "${CARGO_TARGET_DIR:-target}")
PATH=$target/tools/bin:$PATH
stage=target/package
if [ "$target" != "$PWD/target" ]; then
    # The package's description names its files from the repository on.
    mkdir -p target
    ln -sfn "$target/providers" target/providers
fi
rm -rf "$stage"
mkdir -p "$stage/completions" "$(dirname "$out")"
strip -o "$stage/keywheel" "$binary"
chmod 0755 "$stage/keywheel"
"$binary" man "$stage/man" >/dev/null
"$binary" config >"$stage/config.toml"
for shell in bash zsh fish; do
    "$binary" completions "$shell" >"$stage/completions/keywheel.$shell"
done
mkdir -p "$stage/providers"
find target/providers/ -maxdepth 1 -type f \( -name '*.wasm' -o -name '*.toml' -o -name catalogue.json \) \
    -exec cp {} "$stage/providers/" \;
[ -f "$stage/providers/catalogue.json" ] || {
    echo 'the providers are not built; hint: make plugins' >&2
    exit 1
}
cargo-deb --quiet --no-build --no-strip --fast --locked -p keywheel -o "$out"
