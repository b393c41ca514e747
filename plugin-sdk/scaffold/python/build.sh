#!/bin/sh
# Builds dist/my-service.wasm. The first time it installs the toolchain from requirements.txt,
# about 70 MB below .venv; after that it needs no network.
set -eu
cd "$(dirname "$0")"

command -v python3 >/dev/null || { echo 'python3 is missing; hint: your system has a package of that name' >&2; exit 1; }
if ! cmp -s requirements.txt .venv/.installed; then
    python3 -m venv --clear .venv || { echo 'hint: apt-get install python3-venv' >&2; exit 1; }
    .venv/bin/python -m pip --quiet --disable-pip-version-check install \
        --require-hashes --only-binary :all: --no-deps --requirement requirements.txt
    cp requirements.txt .venv/.installed
fi
exec .venv/bin/python -B keywheel/build.py provider.py dist/my-service.wasm
