#!/usr/bin/env bash
# Installs the peers of the end-to-end tests from their lockfiles; with the argument `browser`
# the documented browser worker instead, with `dashboard` who uses the dashboard (both want
# Chromium), with `firefox` Firefox itself, with `postgres` the PostgreSQL server, with `bench` what benches compare with, with `promtool` the checker of Prometheus.
#
# Owns: $TARGET_DIR (default <repository>/target/peers), and nothing else. Must
# never write into the source tree. Run again, it returns at once unless a
# lockfile or an interpreter changed. PYTHON and NODE name other interpreters.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
target=${TARGET_DIR:-$here/../../target/peers}
python=${PYTHON:-python3}
node=${NODE:-node}

fail() {
    printf 'tests/peers/setup.sh: %s\n' "$1" >&2
    exit 1
}

# need WHAT TEST PACKAGE: run TEST; where it fails, install the Debian package if
# that is ours to do, and test again. Only for what is absent: a program that is
# there but too old is the user's, and installing over it would surprise.
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
has_node() { command -v "$node" >/dev/null; }
has_npm() { command -v npm >/dev/null; }

# Debian splits `ensurepip` off; without it an environment cannot install anything.
has_venv() { "$python" -c 'import importlib.util as u, sys; sys.exit(not (u.find_spec("venv") and u.find_spec("ensurepip")))'; }

# at_least WHAT MAJOR MINOR FOUND: refuse a version lower than MAJOR.MINOR.
at_least() {
    local major=${4%%.*} rest=${4#*.}
    local minor=${rest%%.*}
    if [ "$major" -lt "$2" ] || { [ "$major" -eq "$2" ] && [ "$minor" -lt "$3" ]; }; then
        fail "$1 is version $4, needed is $2.$3 or newer; hint: name a newer one with ${1^^}=/path/to/it"
    fi
}

# fresh STAMP VALUE: whether the last complete install was made from VALUE.
fresh() {
    [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]
}

# python_peer FOLDER VENV TITLE: an environment of its own, from the folder's lockfile.
python_peer() {
    local lock=$here/$1/requirements.txt venv=$target/$2 want
    need "python3" has_python python3
    # The lowest that all of them ask for.
    at_least python 3 10 "$("$python" -c 'import platform; print(platform.python_version())')"
    need "the Python module venv with ensurepip" has_venv python3-venv
    want="$(sha256sum <"$lock") $("$python" -c 'import sys; print(sys.version, sys.base_prefix)' | tr '\n' ' ')"
    if fresh "$venv/.stamp" "$want" && [ -x "$venv/bin/python" ]; then return; fi
    printf 'installing %s into %s\n' "$3" "$venv" >&2
    "$python" -m venv --clear "$venv"
    # Only wheels: nothing of these is compiled here but Python's own bytecode.
    "$venv/bin/python" -m pip --quiet --disable-pip-version-check install \
        --require-hashes --only-binary :all: --no-deps --requirement "$lock" >&2 ||
        fail "could not install $3; hint: $lock has wheels for Linux on x86_64 and aarch64 with glibc 2.34, and PYTHON names another interpreter"
    # Without this the first start of a test would compile for two seconds.
    "$venv/bin/python" -m compileall -q "$venv/lib" >/dev/null || true
    printf '%s\n' "$want" >"$venv/.stamp"
}

oidc_provider() {
    local from=$here/oidc-provider to=$target/oidc-provider want
    need "Node.js" has_node nodejs
    # The lowest that this lockfile was tried with.
    at_least node 20 0 "$("$node" -p process.versions.node)"
    need "npm" has_npm npm
    mkdir -p "$to"
    # Node resolves packages from where the file lies, so the server stands
    # beside node_modules. Renamed into place: a running test may be reading it.
    cp "$from/server.js" "$to/.server.js.$$"
    mv "$to/.server.js.$$" "$to/server.js"
    want="$(sha256sum <"$from/package-lock.json") $(sha256sum <"$from/package.json")"
    if fresh "$to/.stamp" "$want" && [ -d "$to/node_modules" ]; then return; fi
    printf 'installing the OpenID provider into %s\n' "$to" >&2
    rm -f "$to/.stamp"
    cp "$from/package.json" "$from/package-lock.json" "$to/"
    # No package here has an install script, and none may gain one.
    (cd "$to" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error) >&2
    printf '%s\n' "$want" >"$to/.stamp"
}

has_postgres() { ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; }

has_firefox() { command -v firefox-esr >/dev/null; }

has_chromium() { command -v "${CHROMIUM:-chromium}" >/dev/null; }

# The example of docs/external-workers.md, as its reader sets it up.
playwright_worker() {
    local from=$here/../../docs/examples/playwright-worker to=$target/playwright-worker want
    need "Chromium" has_chromium chromium
    need "Node.js" has_node nodejs
    at_least node 20 0 "$("$node" -p process.versions.node)"
    need "npm" has_npm npm
    mkdir -p "$to"
    cp "$from/worker.mjs" "$to/.worker.mjs.$$"
    mv "$to/.worker.mjs.$$" "$to/worker.mjs"
    want="$(sha256sum <"$from/package-lock.json") $(sha256sum <"$from/package.json")"
    if fresh "$to/.stamp" "$want" && [ -d "$to/node_modules" ]; then return; fi
    printf 'installing the browser worker into %s\n' "$to" >&2
    rm -f "$to/.stamp"
    cp "$from/package.json" "$from/package-lock.json" "$to/"
    # Its install script would fetch browsers.
    (cd "$to" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error) >&2
    printf '%s\n' "$want" >"$to/.stamp"
}

# Who uses the dashboard as a person does.
dashboard_browser() {
    local from=$here/browser to=$target/browser want
    need "Chromium" has_chromium chromium
    need "Node.js" has_node nodejs
    at_least node 20 0 "$("$node" -p process.versions.node)"
    need "npm" has_npm npm
    mkdir -p "$to"
    cp "$from/dashboard.mjs" "$to/.dashboard.mjs.$$"
    mv "$to/.dashboard.mjs.$$" "$to/dashboard.mjs"
    want="$(sha256sum <"$from/package-lock.json") $(sha256sum <"$from/package.json")"
    if fresh "$to/.stamp" "$want" && [ -d "$to/node_modules" ]; then return; fi
    printf 'installing the browser of the dashboard into %s\n' "$to" >&2
    rm -f "$to/.stamp"
    cp "$from/package.json" "$from/package-lock.json" "$to/"
    # Its install script would fetch browsers.
    (cd "$to" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error) >&2
    printf '%s\n' "$want" >"$to/.stamp"
}

# The one in PATH, or the one of Debian's package: unpacked, not installed, for the package would
# start a Prometheus.
promtool() {
    if [ -x "$target/promtool/usr/bin/promtool" ]; then return; fi
    rm -rf "$target/promtool" && mkdir -p "$target/promtool/usr/bin"
    if type -P promtool >/dev/null; then
        ln -s "$(type -P promtool)" "$target/promtool/usr/bin/promtool"
        return
    fi
    printf 'fetching promtool into %s\n' "$target/promtool" >&2
    local hint='hint: put a promtool into PATH; on Debian apt-get install prometheus'
    command -v apt-get >/dev/null || fail "promtool is missing; $hint"
    if [ "$(id -u)" -eq 0 ]; then apt-get update -qq >&2; fi
    (cd "$target/promtool" && apt-get download -qq prometheus && dpkg-deb -x prometheus_*.deb .) >&2 ||
        fail "could not fetch promtool; $hint"
}

mkdir -p "$target"
target=$(cd "$target" && pwd)
# Two test runs at once must not install over each other.
exec 9>"$target/.lock"
flock 9
case ${1:-peers} in
peers)
    python_peer django-site django-venv 'the Django site'
    python_peer matrix-synapse synapse-venv 'the Matrix homeserver'
    python_peer jupyterhub jupyterhub-venv JupyterHub
    python_peer smtp-server smtp-venv 'the mail server'
    oidc_provider
    ;;
browser) playwright_worker ;;
dashboard) dashboard_browser ;;
bench) python_peer aiohttp-script aiohttp-venv 'the script that benches compare with' ;;
firefox) need Firefox has_firefox firefox-esr ;;
postgres) need PostgreSQL has_postgres postgresql ;;
promtool) promtool ;;
*) fail "unknown argument $1; allowed: nothing, bench, browser, dashboard, firefox, postgres or promtool" ;;
esac
