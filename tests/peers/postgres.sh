#!/usr/bin/env bash
# A PostgreSQL server for as long as a command runs: `postgres.sh COMMAND…` makes an empty one in a
# folder of its own, lets COMMAND find it by KEYWHEEL_TEST_POSTGRES, and takes it away afterwards.
# With PGDATA_IN set its files lie there (tests of durability want a disk); else in memory if there
# is room. It syncs, as every store of ours must.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TARGET_DIR=${TARGET_DIR:-$here/../../target/peers} "$here/setup.sh" postgres
bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1)

folder=$(mktemp -d "${PGDATA_IN:-/dev/shm}/keywheel-postgres.XXXXXX")
# It refuses to run as root; root's tests run it as the user that the package made.
as() { "$@"; }
if [ "$(id -u)" -eq 0 ]; then
    chown postgres: "$folder"
    as() { setpriv --reuid=postgres --regid=postgres --clear-groups --inh-caps=-all "$@"; }
fi
log=$folder/log
stop() {
    (cd / && as "$bin/pg_ctl" -D "$folder/data" -m immediate stop >/dev/null 2>&1) || true
    rm -rf "$folder"
}
trap stop EXIT

cd /
as "$bin/initdb" -D "$folder/data" -U keywheel --auth=trust --no-instructions >/dev/null
# Found by its socket alone.
as "$bin/pg_ctl" -D "$folder/data" -l "$log" -w -t 60 \
    -o "-c listen_addresses='' -c unix_socket_directories='$folder' -c max_connections=500 -c shared_buffers=64MB" \
    start >/dev/null || { cat "$log" >&2; exit 1; }
encoded=${folder//\//%2F}
export KEYWHEEL_TEST_POSTGRES="postgres://keywheel@$encoded/postgres"
cd "$OLDPWD"
"$@"
