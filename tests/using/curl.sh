#!/bin/sh
# A consumer as people write them: asks a site and an API again and again with curl, with nothing
# but the two files that sinks keep fresh, until a file named STOP is there. Prints a line for each
# request: what, a checksum of the file it used, the status, and how many tries it took.
#
# The site ends a session in the very answer that brings the next one, and the file follows a moment
# later. So whoever is refused looks whether the file is another by now, and only then asks again.
#
# usage: curl.sh COOKIES ENVIRONMENT ACCOUNT_URL API_URL STOP
set -eu
cookies=$1 environment=$2 account_url=$3 api_url=$4 stop=$5

sum() { cksum <"$1" | cut -d' ' -f1; }

site() { curl -s -m 20 -o /dev/null -w '%{http_code}' -b "$cookies" "$account_url"; }

# The token comes by standard input: arguments are for everybody to see.
api() {
    (
        . "$environment"
        printf 'header = "Authorization: Bearer %s"\n' "$ACCESS_TOKEN" |
            curl -s -m 20 -o /dev/null -w '%{http_code}' -K - "$api_url"
    )
}

# ask WHAT FILE: one request, whatever it takes.
ask() {
    tries=1
    while :; do
        used=$(sum "$2")
        status=$("$1")
        [ "$status" != 200 ] && [ $tries -lt 5 ] || break
        waited=0
        while [ "$(sum "$2")" = "$used" ] && [ $waited -lt 200 ]; do
            waited=$((waited + 1))
            sleep 0.05
        done
        [ "$(sum "$2")" != "$used" ] || break
        tries=$((tries + 1))
    done
    echo "$1 $used $status $tries"
}

while [ ! -e "$stop" ]; do
    ask site "$cookies"
    ask api "$environment"
    sleep 0.1
done
