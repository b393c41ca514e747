#!/usr/bin/env bash
# Builds the providers that are written in JavaScript and Python, into
# $CARGO_TARGET_DIR/providers/<service>.wasm, and installs what that takes from their lockfiles.
#
# Owns: $CARGO_TARGET_DIR/langs (toolchains, stamps and, for the tests, guests that go wrong), and
# of providers/ the files it builds.
# Must never write into the source tree. The first time it wants a network and half a gigabyte;
# after that it needs no network, and builds again only what changed. PYTHON and NODE name other
# interpreters. With `toolchains` as argument nothing is built.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=${CARGO_TARGET_DIR:-$here/../target}
python=${PYTHON:-python3}
node=${NODE:-node}

fail() {
    printf 'plugins/build-langs.sh: %s\n' "$1" >&2
    exit 1
}

# need WHAT TEST PACKAGE: run TEST; where it fails, install the Debian package if that is ours to
# do, and test again.
need() {
    local what=$1 test=$2 package=$3
    if "$test"; then return; fi
    local hint="hint: apt-get install $package"
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        fail "$what is missing; $hint"
    fi
    printf '%s is missing, installing %s\n' "$what" "$package" >&2
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y "$package"; } >&2 ||
        fail "could not install $what; $hint"
    "$test" || fail "$what is still missing after apt-get install $package; hint: put it first in PATH"
}

has_python() { command -v "$python" >/dev/null; }
has_venv() { "$python" -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("venv") and u.find_spec("ensurepip")))'; }
has_node() { command -v "$node" >/dev/null; }
has_npm() { command -v npm >/dev/null; }

# at_least WHAT MAJOR MINOR FOUND: refuse a version lower than MAJOR.MINOR.
at_least() {
    local major=${4%%.*} rest=${4#*.}
    local minor=${rest%%.*}
    if [ "$major" -lt "$2" ] || { [ "$major" -eq "$2" ] && [ "$minor" -lt "$3" ]; }; then
        fail "$1 is version $4, needed is $2.$3 or newer; hint: name a newer one with ${1^^}=/path/to/it"
    fi
}

# fresh STAMP VALUE: whether the last complete work was made from VALUE.
fresh() {
    [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]
}

# sources FOLDER: what a provider's component is made of, as one digest.
sources() {
    find -L "$1" -type f \( -name '*.js' -o -name '*.mjs' -o -name '*.py' -o -name '*.wit' -o -name '*.json' \
        -o -name requirements.txt \) -not -path '*/test/*' -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum
}

javascript_toolchain() {
    local from=$here/nextcloud to=$langs/js want
    need 'Node.js' has_node nodejs
    # The lowest that these lockfiles were tried with.
    at_least node 20 0 "$("$node" -p process.versions.node)"
    need npm has_npm npm
    want=$(sha256sum <"$from/package-lock.json")
    if fresh "$to/.stamp" "$want" && [ -d "$to/node_modules" ]; then return; fi
    printf 'installing componentize-js into %s\n' "$to" >&2
    mkdir -p "$to"
    rm -f "$to/.stamp"
    cp "$from/package.json" "$from/package-lock.json" "$to/"
    # The engine comes in the package; no script of any package is needed.
    (cd "$to" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error) >&2 ||
        fail 'npm could not install componentize-js; hint: it needs a network, this one time'
    printf '%s\n' "$want" >"$to/.stamp"
}

python_toolchain() {
    local lock=$here/wordpress/requirements.txt to=$langs/python want
    need python3 has_python python3
    at_least python 3 10 "$("$python" -c 'import platform; print(platform.python_version())')"
    need 'the Python module venv with ensurepip' has_venv python3-venv
    want="$(sha256sum <"$lock") $("$python" -c 'import sys; print(sys.version, sys.base_prefix)' | tr '\n' ' ')"
    if fresh "$to/.stamp" "$want" && [ -x "$to/bin/python" ]; then return; fi
    printf 'installing componentize-py into %s\n' "$to" >&2
    "$python" -m venv --clear "$to"
    "$to/bin/python" -m pip --quiet --disable-pip-version-check install \
        --require-hashes --only-binary :all: --no-deps --requirement "$lock" >&2 ||
        fail 'pip could not install componentize-py; hint: it needs a network, this one time, and a platform it is made for'
    printf '%s\n' "$want" >"$to/.stamp"
}

# build FOLDER OUTPUT COMMAND…: unless OUTPUT is there and made of what FOLDER holds.
build() {
    local from=$1 out=$2 want stamp
    shift 2
    stamp=$langs/$(basename "$out").stamp
    want="$(sources "$from") $(cat "$langs"/*/.stamp | sha256sum)"
    if fresh "$stamp" "$want" && [ -f "$out" ]; then return; fi
    # Beside the folder of the providers: what lies there half done would be taken for one.
    rm -f "$stamp"
    "$@" "$langs/$(basename "$out")" || fail "$from can't be built; what the toolchain says stands above"
    mv "$langs/$(basename "$out")" "$out"
    printf '%s\n' "$want" >"$stamp"
}

# SOURCE OUTPUT
javascript() { "$node" "$(dirname "$1")/keywheel/build.mjs" "$1" "$2" --toolchain "$langs/js" >/dev/null; }
pythonic() { "$langs/python/bin/python" -B "$(dirname "$1")/keywheel/build.py" "$1" "$2" >/dev/null; }

mkdir -p "$target/langs/guests" "$target/providers"
target=$(cd "$target" && pwd)
langs=$target/langs
# Two builds at once must not install over each other.
exec 9>"$langs/.lock"
flock 9

javascript_toolchain
python_toolchain
case ${1:-all} in
toolchains) ;;
all)
    for provider in "$here"/*/provider.js; do
        from=$(dirname "$provider")
        build "$from" "$target/providers/$(basename "$from").wasm" javascript "$provider"
    done
    for provider in "$here"/*/provider.py; do
        from=$(dirname "$provider")
        build "$from" "$target/providers/$(basename "$from").wasm" pythonic "$provider"
    done
    guests=$here/../tests/languages
    build "$guests/faulty-js" "$langs/guests/faulty-js.wasm" javascript "$guests/faulty-js/provider.js"
    build "$guests/faulty-python" "$langs/guests/faulty-python.wasm" pythonic "$guests/faulty-python/provider.py"
    ;;
*) fail "unknown argument $1; allowed: nothing, or toolchains" ;;
esac
