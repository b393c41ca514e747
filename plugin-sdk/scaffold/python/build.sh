#!/usr/bin/env bash
# Builds build/my-service.wasm. The first time it installs the toolchain from requirements.txt,
# about 70 MB below .venv; after that it needs no network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

command -v python3 >/dev/null || { echo 'python3 is missing; hint: your system has a package of that name' >&2; exit 1; }
if ! cmp --silent requirements.txt .venv/.installed; then
    python3 -m venv --clear .venv || { echo 'hint: apt-get install python3-venv' >&2; exit 1; }
    .venv/bin/python -m pip --quiet --disable-pip-version-check install \
        --require-hashes --only-binary :all: --no-deps --requirement requirements.txt
    cp requirements.txt .venv/.installed
fi
exec .venv/bin/python keywheel/build.py provider.py build/my-service.wasm
