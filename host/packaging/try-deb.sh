#!/usr/bin/env bash
# Installs the package, serves from it as its user, upgrades it from the build before, removes and
# purges it: on a view of this machine that is thrown away (an overlay), so nothing of the machine
# itself changes. Usage: try-deb.sh BINARY
# Needs root, dpkg and a kernel with overlayfs; without them it says so and ends with 0.
set -euo pipefail
binary=$(realpath "$1")
here=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
target=$(realpath "${CARGO_TARGET_DIR:-$here/../../target}")

if [ "$(id -u)" -ne 0 ] || ! command -v dpkg >/dev/null; then
    echo 'left out: the package is tried as root, on a system with dpkg'
    exit 0
fi
"$here/build-deb.sh" "$binary" "$target/debian/keywheel.deb"

view=$(mktemp -d)
trap 'rm -rf "$view"' EXIT
# The build before: the same files under an earlier number.
dpkg-deb --raw-extract "$target/debian/keywheel.deb" "$view/before"
sed -i 's/^Version: .*/Version: 0.0.1-1/' "$view/before/DEBIAN/control"
dpkg-deb --build -Zgzip -z1 "$view/before" "$target/debian/keywheel_before.deb" >/dev/null
rm -rf "$view/before"
export view target
unshare --mount --propagation private bash -euo pipefail <<'OUTSIDE'
mount -t tmpfs tmpfs "$view"
mkdir "$view"/{upper,work,root}
if ! mount -t overlay overlay -o "lowerdir=/,upperdir=$view/upper,workdir=$view/work" "$view/root"; then
    echo 'left out: this kernel lays no overlay here'
    exit 0
fi
mount --rbind /proc "$view/root/proc"
mount --rbind /dev "$view/root/dev"
mount -t tmpfs tmpfs "$view/root/tmp"
mkdir -p "$view/root/run"
mount -t tmpfs tmpfs "$view/root/run"
cp "$target"/debian/keywheel_before.deb "$target"/debian/keywheel.deb "$view/root/tmp/"
chroot "$view/root" bash -euo pipefail <<'INSIDE'
home=/var/lib/keywheel
unit=/usr/lib/systemd/system/keywheel.service
export DEBIAN_FRONTEND=noninteractive
fail() { echo "the package: $*" >&2; exit 1; }
is() { [ "$1" = "$2" ] || fail "$3 is $1, not $2"; }
as_its_user() { runuser -u keywheel -- env -i PATH=/usr/bin:/bin KEYWHEEL_HOME="$home" "$@"; }
say() { printf '%s\n' "$*"; }

# As the unit starts it: its command, its environment, its user.
serve() {
    local words
    words=$(sed -n 's/^ExecStart=//p' "$unit")
    # shellcheck disable=SC2086
    as_its_user $words 2>>/tmp/serve.log &
    for _ in $(seq 600); do
        # It ends with 1 where something needs a person, and says so all the same.
        if { as_its_user keywheel status --json 2>/dev/null || true; } | grep -q '"daemon": true'; then
            return
        fi
        sleep 0.1
    done
    cat /tmp/serve.log >&2
    fail 'the daemon does not answer'
}
stop() {
    kill -TERM "$(tr -d '[:space:]' <"$home/lock")"
    wait || fail "the daemon ended with $?"
}

[ -e "$home" ] && fail "$home is there before the package"

dpkg --install /tmp/keywheel_before.deb >/tmp/install.log 2>&1 || { cat /tmp/install.log; fail 'it does not install'; }
grep -q 'systemctl enable --now keywheel' /tmp/install.log || fail 'it does not say how to start'
is "$(stat -c '%U:%G %a' "$home")" 'keywheel:keywheel 700' "$home"
is "$(stat -c '%U %a' "$home/master.key")" 'keywheel 600' 'the master key'
is "$(getent passwd keywheel | cut -d: -f7)" /usr/sbin/nologin "the user's shell"
find /etc/systemd/system -name 'keywheel*' 2>/dev/null | grep -q . && fail 'it enabled itself'
for file in /usr/bin/keywheel "$unit" /usr/lib/systemd/system/keywheel-backup.timer \
    /usr/share/man/man1/keywheel.1.gz /usr/share/man/man1/keywheel-credential-add.1.gz \
    /usr/share/bash-completion/completions/keywheel /usr/share/zsh/vendor-completions/_keywheel \
    /usr/share/fish/vendor_completions.d/keywheel.fish /usr/share/keywheel/providers/catalogue.json \
    /usr/share/doc/keywheel/config.toml /usr/share/doc/keywheel/copyright; do
    [ -s "$file" ] || fail "$file is missing"
done
dpkg --verify keywheel | grep -q . && fail "its files differ: $(dpkg --verify keywheel)"
is "$(systemd-analyze verify "$unit" 2>&1 | grep -v "man .* failed" || true)" '' 'what systemd says of the unit'
say 'installs'

serve
as_its_user keywheel plugin install http-session >/dev/null
is "$(as_its_user keywheel plugin list --json | grep -c '"state": "active"')" 1 'the active plugins'
as_its_user keywheel backup "$home/before.backup" >/dev/null
key=$(sha256sum <"$home/master.key")
say 'starts, and runs a plugin'

# The old daemon runs on from its file while the new one is put in place, as on a live machine.
dpkg --install /tmp/keywheel.deb >/tmp/upgrade.log 2>&1 || { cat /tmp/upgrade.log; fail 'it does not upgrade'; }
is "$(as_its_user keywheel plugin list --json | grep -c '"state": "active"')" 1 'the active plugins of the old daemon'
stop
serve
is "$(dpkg-query -W -f '${Version}' keywheel | cut -d- -f1)" "$(keywheel --version | cut -d' ' -f2)" 'the version'
is "$(as_its_user keywheel plugin list --json | grep -c '"state": "active"')" 1 'the active plugins after the upgrade'
is "$(sha256sum <"$home/master.key")" "$key" 'the master key after the upgrade'
as_its_user keywheel backup verify "$home/before.backup" >/dev/null
stop
grep -q 'systemctl enable --now' /tmp/upgrade.log && fail 'an upgrade speaks of a first start'
say 'upgrades'

dpkg --remove keywheel >/dev/null
[ -e /usr/bin/keywheel ] && fail 'the binary stays'
is "$(sha256sum <"$home/master.key")" "$key" 'the master key after the removal'
dpkg --purge keywheel >/dev/null
[ ! -e "$home" ] || fail 'the home stays after a purge'
INSIDE
# What the view holds beside the machine's own: nothing of the package's. The user stays, and what
# dpkg, adduser and the log keep.
left=$(cd "$view/upper" && find . -type f | grep -v -e '^./etc/.pwd.lock$' -e '^./etc/\(passwd\|group\|shadow\|gshadow\|subuid\|subgid\)-\?$' \
    -e '^./var/\(lib/dpkg\|log\|cache\)/' || true)
if [ -n "$left" ]; then
    printf 'the package: left on the disk: %s\n' "$left" >&2
    exit 1
fi
echo 'removes cleanly'
OUTSIDE
