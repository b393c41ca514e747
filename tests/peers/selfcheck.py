#!/usr/bin/env python3
"""Shows that the peers are what the tests take them for.

Owns: nothing that lasts. Starts each peer as the test harness does, plays the
client with the standard library alone, and ends it by closing its stdin or by
its process id. Run `setup.sh` first.

Must never: talk to anything but the peers it started.
"""

import base64
import http.client
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlencode, urlsplit

HERE = Path(__file__).resolve().parent
TARGET = Path(os.environ.get("TARGET_DIR") or HERE.parent.parent / "target" / "peers").resolve()
NODE = os.environ.get("NODE", "node")
PYTHON = TARGET / "django-venv" / "bin" / "python"
SITE = HERE / "django-site" / "site.py"
OIDC = TARGET / "oidc-provider" / "server.js"

START_BUDGET = 2.0  # seconds; every test that needs a peer waits this long
END_BUDGET = 2.0
SESSION_AGE = 2
ROTATIONS = 12

failures = 0


def check(claim, held, found=""):
    global failures
    failures += not held
    print(f"{'ok  ' if held else 'FAIL'} {claim}" + (f" ({found})" if found != "" else ""), flush=True)


class Peer:
    """A peer process; ends with the `with` block, whatever happens in it."""

    def __init__(self, *command):
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def __enter__(self):
        readable, _, _ = select.select([self.process.stdout], [], [], 5 * START_BUDGET)
        line = self.process.stdout.readline() if readable else ""
        if not line:
            self.process.kill()
            raise SystemExit(f"FAIL {self.process.args} said nothing: {self.process.stderr.read()}")
        self.start_seconds = time.monotonic() - self.started
        self.ready = json.loads(line)
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def ends_by(self, end):
        end(self.process)
        try:
            code = self.process.wait(timeout=END_BUDGET)
        except subprocess.TimeoutExpired:
            return False, "still running"
        return code == 0, f"exit status {code}"

    def stdout_rest(self):
        return self.process.stdout.read()


def request(base, method, path, cookies=None, headers=None, form=None):
    """One request. `cookies` is a plain dict that `Set-Cookie` updates, as a jar would."""
    headers = dict(headers or {})
    body = None
    if form is not None:
        body = urlencode(form)
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    if cookies:
        headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
    connection = http.client.HTTPConnection(urlsplit(base).netloc, timeout=5)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    for line in response.msg.get_all("Set-Cookie") or []:
        name, value = line.split(";")[0].split("=", 1)
        if cookies is not None:
            if value.strip('"'):
                cookies[name] = value
            else:
                cookies.pop(name, None)
    is_json = response.getheader("Content-Type", "").startswith("application/json")
    return response.status, response.getheader("Location"), json.loads(text) if is_json and text else text


def until(deadline, look, pause=0.05):
    """Look until it holds or the deadline passes; true expiry takes true time."""
    while time.monotonic() < deadline:
        if look():
            return True
        time.sleep(pause)
    return look()


def issue(base, user):
    _, _, issued = request(base, "POST", f"/test/issue/?user={user}")
    return {issued["cookie"]["name"]: issued["cookie"]["value"]}, issued


def alive(base, cookies):
    # A copy: Django deletes the cookie of a dead session, which the caller may want to keep.
    status, location, body = request(base, "GET", "/account/", dict(cookies))
    return status == 200, status, location, body


def check_django(folder):
    db = folder / "site.sqlite3"
    with Peer(PYTHON, SITE, "--port", "0", "--db", db, "--session-age", SESSION_AGE) as site:
        url = site.ready["url"]
        check("django: ready within 2 s", site.start_seconds < START_BUDGET, f"{site.start_seconds:.2f} s")
        check("django: listens on loopback alone", url.startswith("http://127.0.0.1:"), url)

        status, location, _ = request(url, "GET", "/account/")
        check("django: without a session /account/ leads to the log-in", (status, location) == (302, "/login/?next=/account/"), f"{status} {location}")

        # Two sessions from one moment: one is kept alive, the other is not touched.
        kept, issued = issue(url, "alice")
        left, _ = issue(url, "bob")
        ok, status, _, body = alive(url, kept)
        check("django: an issued session is logged in", ok and body["user"] == "alice", body)

        first_id = kept["sessionid"]
        born = time.monotonic()
        refreshes = 0
        while time.monotonic() < born + 3 * SESSION_AGE:
            before = kept["sessionid"]
            status, _, body = request(url, "POST" if refreshes % 2 else "GET", "/refresh/", kept)
            refreshes += 1
            if status != 200 or kept.get("sessionid") in (before, None):
                check("django: a refresh rotates the session id", False, f"{status} {body}")
                break
            time.sleep(SESSION_AGE / 4)
        seen = request(url, "GET", "/stats/")[2]
        check("django: refreshed, a session outlives three of its lives", alive(url, kept)[0], f"{refreshes} refreshes")
        check("django: each refresh gave a new id, and none was dead", seen["cycles"] == refreshes and seen["dead_session_requests"] == 0, seen)
        check("django: the database holds the new row, not the old ones", seen["session_rows"] == 2 and seen["live_sessions"] == 1, seen["session_rows"])

        ok, status, location, _ = alive(url, left)
        check("django: untouched, a session is dead after its age", not ok and status == 302 and location.startswith("/login/"), f"{status} {location}")
        check("django: a rotated-away id is dead", not alive(url, {"sessionid": first_id})[0])
        dead = request(url, "GET", "/stats/")[2]["dead_session_requests"]
        check("django: both dead requests were counted", dead == 2, dead)

        cookies, _ = issue(url, "carol")
        born = time.monotonic()
        died = until(born + SESSION_AGE + 1, lambda: not alive(url, cookies)[0])
        lived = time.monotonic() - born
        check("django: looking at /account/ does not renew", died and lived >= SESSION_AGE - 0.2, f"died after {lived:.2f} s of {SESSION_AGE}")

        cookies, _ = issue(url, "dave")
        same = dict(cookies)
        status, _, _ = request(url, "POST", "/keepalive/", cookies)
        check("django: /keepalive/ renews under the same id", status == 200 and cookies == same)

        # The form, as a browser would: the page sets the CSRF cookie and carries the token.
        form = {"username": "alice", "password": issued["password"]}
        jar = {}
        status, _, _ = request(url, "POST", "/login/", jar, form=form)
        check("django: the form without its CSRF token is refused", status == 403, status)
        _, _, page = request(url, "GET", "/login/", jar)
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page).group(1)
        status, _, _ = request(url, "POST", "/login/", jar, form=form | {"password": "wrong", "csrfmiddlewaretoken": token})
        check("django: a wrong password logs nobody in", status == 200 and "sessionid" not in jar, status)
        status, location, _ = request(url, "POST", "/login/", jar, form=form | {"csrfmiddlewaretoken": token})
        check("django: the form logs in", status == 302 and location == "/account/" and alive(url, jar)[0], f"{status} {location}")

        command = [PYTHON, SITE, "--db", db, "--session-age", SESSION_AGE, "--issue", "erin"]
        line = subprocess.run([str(part) for part in command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout
        cookie = json.loads(line)["cookie"]
        ok, _, _, body = alive(url, {cookie["name"]: cookie["value"]})
        check("django: --issue in a process of its own prints a session the site accepts", ok and body["user"] == "erin" and line.count("\n") == 1)

        check("django: ends when stdin closes", *site.ends_by(lambda process: process.stdin.close()))
        check("django: stdout was the ready line alone", site.stdout_rest() == "")

    with Peer(PYTHON, SITE, "--db", db, "--session-age", SESSION_AGE, "--save-every-request") as site:
        url = site.ready["url"]
        cookies, _ = issue(url, "alice")
        end = time.monotonic() + 1.5 * SESSION_AGE
        renewed = not until(end, lambda: not alive(url, cookies)[0])
        check("django: with --save-every-request, looking renews", renewed)
        check("django: ends on SIGTERM", *site.ends_by(lambda process: process.send_signal(signal.SIGTERM)))


def refresh(ready, client, refresh_token, secret=None):
    form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
    headers = {}
    secret = secret or client["client_secret"]
    if client["token_endpoint_auth_method"] == "client_secret_basic":
        pair = f"{client['client_id']}:{secret}".encode()
        headers["Authorization"] = "Basic " + base64.b64encode(pair).decode()
    else:
        form |= {"client_id": client["client_id"], "client_secret": secret}
    status, _, body = request(ready["url"], "POST", urlsplit(ready["token_url"]).path, headers=headers, form=form)
    return status, body


def userinfo(ready, access_token):
    path = urlsplit(ready["userinfo_url"]).path
    status, _, body = request(ready["url"], "GET", path, headers={"Authorization": f"Bearer {access_token}"})
    return status, body


def check_oidc():
    access_ttl = 3
    with Peer(NODE, OIDC, "--port", "0", "--access-ttl", access_ttl) as provider:
        ready = provider.ready
        url = ready["url"]

        def events():
            return request(url, "GET", "/test/events")[2]

        check("oidc: ready within 2 s", provider.start_seconds < START_BUDGET, f"{provider.start_seconds:.2f} s")
        check("oidc: listens on loopback alone", url.startswith("http://127.0.0.1:"), url)
        status, _, metadata = request(url, "GET", "/.well-known/openid-configuration")
        named = all(metadata[f"{name}_endpoint"] == ready[f"{name}_url"] for name in ("token", "userinfo", "introspection", "revocation"))
        check("oidc: the ready line names the endpoints of the discovery document", named)

        for number, client in enumerate(ready["clients"]):
            name = f"oidc, {client['token_endpoint_auth_method']}"
            _, _, tokens = request(url, "POST", f"/test/issue?client={client['client_id']}&account=alice")
            status, body = userinfo(ready, tokens["access_token"])
            check(f"{name}: the first access token opens userinfo", status == 200 and body == {"sub": "alice", "name": "alice"}, body)

            status, body = refresh(ready, client, tokens["refresh_token"], secret="wrong")
            check(f"{name}: a wrong client secret is refused and burns nothing", status == 401 and body["error"] == "invalid_client", status)

            seen = {tokens["refresh_token"]}
            for _ in range(ROTATIONS):
                status, tokens = refresh(ready, client, tokens["refresh_token"])
                if status != 200:
                    break
                seen.add(tokens["refresh_token"])
            check(f"{name}: {ROTATIONS} rotations gave {ROTATIONS} new refresh tokens", status == 200 and len(seen) == ROTATIONS + 1, status)
            check(f"{name}: the newest access token opens userinfo", userinfo(ready, tokens["access_token"])[0] == 200)
            check(f"{name}: expires_in is the --access-ttl", tokens["expires_in"] == access_ttl, tokens["expires_in"])

            now = events()
            # Each client before this one left one exchange more, after its token's expiry.
            done = ROTATIONS * (number + 1) + number
            check(f"{name}: no reuse was seen", (now["refresh_exchanges"], now["reuse_detected"], now["grants_revoked"]) == (done, number, number), now)

            dies = until(time.monotonic() + access_ttl + 2, lambda: userinfo(ready, tokens["access_token"])[0] == 401)
            check(f"{name}: the access token truly expires", dies)

            status, fresh = refresh(ready, client, tokens["refresh_token"])
            check(f"{name}: a refresh after that opens userinfo again", status == 200 and userinfo(ready, fresh["access_token"])[0] == 200)
            status, body = refresh(ready, client, tokens["refresh_token"])
            check(f"{name}: a used refresh token is refused", status == 400 and body["error"] == "invalid_grant", body)
            check(f"{name}: reuse ends the access token", userinfo(ready, fresh["access_token"])[0] == 401)
            status, body = refresh(ready, client, fresh["refresh_token"])
            check(f"{name}: reuse ends the newest refresh token too", status == 400 and body["error"] == "invalid_grant", body)
            now = events()
            check(f"{name}: the reuse is counted once, and the grant as revoked", (now["reuse_detected"], now["grants_revoked"]) == (number + 1, number + 1), now["error_reasons"])

        check("oidc: ends when stdin closes", *provider.ends_by(lambda process: process.stdin.close()))
        check("oidc: stdout was the ready line alone", provider.stdout_rest() == "")

    with Peer(NODE, OIDC) as provider:
        check("oidc: ends on SIGTERM", *provider.ends_by(lambda process: process.send_signal(signal.SIGTERM)))


def main():
    missing = [str(path) for path in (PYTHON, OIDC) if not path.exists()]
    if missing:
        raise SystemExit(f"{', '.join(missing)} is missing; hint: run {HERE / 'setup.sh'}")
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        check_django(Path(folder))
    check_oidc()
    print(f"{'failed' if failures else 'passed'} in {time.monotonic() - started:.1f} s", flush=True)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
