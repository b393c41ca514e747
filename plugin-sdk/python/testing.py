"""Unit tests for providers, natively: a script of expected requests and their answers takes the
host's place. Like the host it refuses an origin the manifest doesn't name, captures by the
request's rules and by the key mapping, and takes known values out of what the provider sees.
Raises AssertionError where a test should fail. Must never be imported by a provider.

A request is written as text, with secrets where they would be put: `{key}` as it is, `{key|form}`
encoded, `{client:{key}|base64}` computed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Union

from . import host
from .call import run
from .cx import Context, Cx, KeyState
from .manifest import CommitClass, Cookie, Manifest, SettingKind
from .placeholders import Unfilled, fill, origin
from .provider import Provider
from .request import Place, Request
from .response import Captured, at
from .template import Encoded, Secret
from .verdict import Evidence, Outcome, Reason, Verdict

# 2026-01-01T00:00:00Z: a fixed moment, so that tests say the same every day.
NOW = 1_767_225_600_000


@dataclass(frozen=True)
class Expected:
    """A request the provider is expected to make: unless said otherwise without cookies, without a
    body, and without a header that has a secret."""

    method: str
    url: str
    headers: dict[str, str] = field(default_factory=dict)
    body: str | None = None
    cookies: bool = False

    def __str__(self) -> str:
        lines = [f"  {self.method} {self.url}"]
        if self.cookies:
            lines.append("    with the credential's cookies")
        lines += [f"    {name}: {value}" for name, value in self.headers.items()]
        if self.body is not None:
            lines.append(f"    body: {self.body}")
        return "\n".join(lines)


def request(
    method: str,
    url: str,
    *,
    headers: dict[str, str] | None = None,
    body: str | None = None,
    cookies: bool = False,
) -> Expected:
    lower = {name.lower(): value for name, value in (headers or {}).items()}
    return Expected(method, url, lower, body, cookies)


def get(url: str, *, headers: dict[str, str] | None = None, cookies: bool = False) -> Expected:
    return request("GET", url, headers=headers, cookies=cookies)


def post(
    url: str, *, headers: dict[str, str] | None = None, body: str | None = None, cookies: bool = False
) -> Expected:
    return request("POST", url, headers=headers, body=body, cookies=cookies)


@dataclass(frozen=True)
class Answer:
    """What the service answers."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: str = ""

    def set_cookie(self, name: str, value: str) -> Answer:
        """The service sets a cookie; the key mapping says whose it is. `Max-Age` is understood, and
        an empty value deletes."""
        return replace(self, headers=(*self.headers, ("set-cookie", f"{name}={value}")))


def answer(
    status: int,
    *,
    json: object = None,
    html: str | None = None,
    body: str = "",
    headers: dict[str, str] | None = None,
) -> Answer:
    """`json` is text as it is, anything else as JSON."""
    found = [(name.lower(), value) for name, value in (headers or {}).items()]
    if json is not None:
        found.append(("content-type", "application/json"))
        body = json if isinstance(json, str) else _as_json(json)
    if html is not None:
        found.append(("content-type", "text/html; charset=utf-8"))
        body = html
    return Answer(status, tuple(found), body)


def _as_json(value: object) -> str:
    return json.dumps(value)


def fails(tag: str, what: object = "as scripted") -> host.Refused:
    """No answer: `fails("timeout")`, or `dns`, `connect`, `tls`, `too-large`, `protocol`, `budget`,
    `denied`, `other` with what the host says."""
    return host.Refused(tag, None if tag == "timeout" else what)


@dataclass(frozen=True)
class Run:
    """What came of a case."""

    tag: str
    why: Union[Evidence, Reason]
    # Every line the provider logged.
    log: list[tuple[str, str]]
    # The values the host kept, which the provider never saw.
    captured: dict[str, str]

    @property
    def failure(self) -> str | None:
        """Why the call failed, where it did."""
        return self.why.message if self.tag == "failed" and isinstance(self.why, Reason) else None

    @property
    def verdict(self) -> str:
        """`valid`, `invalid`, `unknown`, `needs-human`; of a rotation also `rotated`,
        `unchanged`."""
        assert self.failure is None, f"the call failed: {self.failure}"
        return self.tag


@dataclass
class _Key:
    name: str
    value: str
    expires: int | None
    granted: bool


class Case:
    """One attempt to come: settings, keys and the script."""

    def __init__(self, provider: Provider):
        """Raises with every fault of the manifest that would make the host refuse the plugin."""
        self._provider = provider
        self._manifest = provider.describe()
        found = faults(self._manifest)
        assert not found, "the host would refuse this manifest:\n  " + "\n  ".join(found)
        self._settings = {setting.name: setting.default or "" for setting in self._manifest.settings}
        self._keys: list[_Key] = []
        self._script: list[tuple[Expected, Answer | host.Refused]] = []
        self._now = NOW

    def setting(self, name: str, value: str) -> Case:
        assert name in self._settings, f"the manifest has no setting `{name}`"
        self._settings[name] = value
        return self

    def key(
        self, name: str, *, value: str | None = None, expires: int | None = None, granted: bool = False
    ) -> Case:
        """The credential has this key, with a made-up value unless one is given. `expires` is in
        milliseconds since 1970; `granted` where the operator lets the plugin see it."""
        assert any(key.name == name for key in self._manifest.keys), f"the manifest has no key `{name}`"
        self._keys.append(_Key(name, f"old-{name}" if value is None else value, expires, granted))
        return self

    def now(self, now: int) -> Case:
        self._now = now
        return self

    def expect(self, request: Expected, answer: Answer | host.Refused) -> Case:
        """The next request, and what comes back."""
        self._script.append((request, answer))
        return self

    def validate(self) -> Run:
        return self._run("validate", Verdict, self._provider.validate)

    def rotate(self, method: str) -> Run:
        known = any(one.name == method for one in self._manifest.methods)
        assert known, f"the manifest has no method `{method}`"
        return self._run("rotate", Outcome, lambda cx: self._provider.rotate(cx, method))

    def _run(self, name: str, due: type[Verdict] | type[Outcome], call: Callable[[Cx], object]) -> Run:
        for setting in self._manifest.settings:
            given = not setting.required or self._settings[setting.name]
            assert given, f"setting `{setting.name}` is required: the host would not add this credential"
        context = Context(
            credential_id="test",
            profile_id=None,
            settings=[*self._settings.items()],
            keys=[self._state(key.name) for key in self._manifest.keys],
            attempt=1,
            now=self._now,
        )
        stage = _Stage(self._manifest, self._settings, self._keys, [*self._script], self._now)
        before = host.connect(stage)
        try:
            tag, why = run(name, due, lambda: call(Cx(context, self._provider.describe)))
        finally:
            host.connect(before)
        # The provider may have caught what the script raised; the test must not miss it.
        assert stage.offence is None, stage.offence
        missing = "\n".join(str(expected) for expected, _ in stage.script)
        assert not missing, f"the provider never made these requests:\n{missing}"
        return Run(tag, why, stage.log, stage.captured)

    def _state(self, name: str) -> KeyState:
        key = next((key for key in self._keys if key.name == name), None)
        if key is None:
            return KeyState(name, False)
        return KeyState(name, True, _fingerprint(key.value), key.expires)


class _Stage:
    """The host's part while a case runs."""

    def __init__(
        self,
        manifest: Manifest,
        settings: dict[str, str],
        keys: list[_Key],
        script: list[tuple[Expected, Answer | host.Refused]],
        now: int,
    ):
        self.manifest = manifest
        self.settings = settings
        self.keys = keys
        self.script = script
        self.now = now
        self.log: list[tuple[str, str]] = []
        self.captured: dict[str, str] = {}
        self.offence: str | None = None

    def emit(self, level: str, message: str) -> None:
        self.log.append((level, message))

    def reveal(self, key: str) -> bytes:
        if not any(spec.name == key and spec.reveal for spec in self.manifest.keys):
            raise host.Refused("other", f"the manifest doesn't ask to see `{key}`")
        known = next((known for known in self.keys if known.name == key and known.granted), None)
        if known is None:
            raise host.Refused("other", f"the operator didn't grant `{key}`")
        return known.value.encode()

    def send(self, request: Request) -> host.Answer:
        made = Expected(
            request.method,
            str(request.url),
            {name.lower(): str(value) for name, value in request.headers},
            None if request.content is None else str(request.content),
            request.with_cookies,
        )
        self._check_rules(request)
        allowed = [self._fill(one) for one in self.manifest.origins]
        where = origin(made.url)
        if where is None or where not in allowed:
            raise host.Refused("denied", f"{made.url} is at none of {', '.join(map(str, allowed))}")
        if not self.script:
            self._refuse(f"a request the script doesn't expect:\n{made}")
        expected, answer = self.script.pop(0)
        self._compare(expected, made)
        if isinstance(answer, host.Refused):
            raise answer
        headers, captured = self._capture(request, answer)
        return host.Answer(
            answer.status,
            made.url,
            [(name, self._redacted(value)) for name, value in headers],
            self._redacted(answer.body).encode(),
            captured,
        )

    def _refuse(self, what: str) -> None:
        self.offence = self.offence or what
        raise AssertionError(what)

    def _check_rules(self, request: Request) -> None:
        """What the host would refuse whatever the script says."""
        templates = [request.url, *([request.content] if request.content else [])]
        templates += [value for _, value in request.headers]
        for part in (part for template in templates for part in template.parts):
            for leaf in part.leaves if isinstance(part, Encoded) else (part,):
                if isinstance(leaf, Secret) and leaf.key not in {key.name for key in self.keys} | {*self.captured}:
                    self._refuse(f"a template uses key `{leaf.key}`, which this credential doesn't have")
        tokens = {key.name for key in self.manifest.keys if key.location is None}
        for rule in request.captures:
            if rule.key not in tokens:
                self._refuse(f"a capture rule names `{rule.key}`, which is no token of the manifest")

    def _compare(self, expected: Expected, made: Expected) -> None:
        # Headers the test doesn't name may be anything without a secret in it.
        same = (
            all(made.headers.get(name) == value for name, value in expected.headers.items())
            and all("{" not in value or name in expected.headers for name, value in made.headers.items())
            and (expected.method, expected.url, expected.body, expected.cookies)
            == (made.method, made.url, made.body, made.cookies)
        )
        if not same:
            self._refuse(f"expected the request\n{expected}\nbut the provider made\n{made}")

    def _capture(self, request: Request, answer: Answer) -> tuple[list[tuple[str, str]], list[Captured]]:
        found: list[tuple[str, str | None, int | None]] = []
        for cookie in (value for name, value in answer.headers if name == "set-cookie"):
            pair, *attributes = (piece.strip() for piece in cookie.split(";"))
            name, _, value = pair.partition("=")
            stated = (attribute.partition("=") for attribute in attributes)
            max_age = next((int(at) for known, _, at in stated if known.lower() == "max-age"), None)
            lives = bool(value) and (max_age is None or max_age > 0)
            expires = self.now + max_age * 1_000 if lives and max_age is not None else None
            for spec in self.manifest.keys:
                if isinstance(spec.location, Cookie) and self._fill(spec.location.name) == name:
                    found.append((spec.name, value if lives else None, expires))
        headers = [(name, value) for name, value in answer.headers if name != "set-cookie"]
        if 200 <= answer.status < 300:
            try:
                body = json.loads(answer.body)
            except ValueError:
                body = None

            def take(place: Place | None) -> str | None:
                if place is None:
                    return None
                if place.tag == "header":
                    return next((value for name, value in headers if name == place.value.lower()), None)
                value = at(body, place.value)
                known = isinstance(value, (str, int, float)) and not isinstance(value, bool)
                return str(value) if known else None

            for rule in request.captures:
                fresh, seconds = take(rule.source.place), take(rule.source.seconds)
                lasts = seconds is not None and re.fullmatch(r"\d+", seconds)
                if fresh is not None:
                    found.append((rule.key, fresh, self.now + int(seconds) * 1_000 if lasts else None))
        captured = []
        for key, fresh, expires in found:
            old = next((known.value for known in self.keys if known.name == key), None)
            captured.append(Captured(key, None if fresh is None else _fingerprint(fresh), old != fresh, expires))
            if fresh is None:
                self.captured.pop(key, None)
            else:
                self.captured[key] = fresh
        return headers, captured

    def _redacted(self, shown: str) -> str:
        for secret in [*(key.value for key in self.keys), *self.captured.values()]:
            if secret:
                shown = shown.replace(secret, "[redacted]")
        return shown

    def _fill(self, pattern: str) -> str | None:
        try:
            return fill(pattern, self.settings.get)
        except Unfilled:
            return None


def _fingerprint(value: str) -> str:
    """Stands in for the host's keyed HMAC: equal for equal values, and not the value. FNV-1a, 64
    bits."""
    hashed = 0xCBF2_9CE4_8422_2325
    for byte in value.encode():
        hashed = (hashed ^ byte) * 0x0100_0000_01B3 % 2**64
    return f"{hashed:016x}"


def faults(manifest: Manifest) -> list[str]:
    """What would make the host refuse the manifest, one sentence each."""
    found: list[str] = []

    def check(fine: object, fault: str) -> None:
        if not fine:
            found.append(fault)

    def slug(text: str, also: str) -> object:
        return re.fullmatch(f"[a-z0-9{also}]{{1,64}}", text)

    def once(names: list[str], what: str) -> None:
        check(len({*names}) == len(names), f"two {what} have one name")

    check(slug(manifest.service, "-"), f"service `{manifest.service}` is not [a-z0-9-], 1 to 64 characters")
    check(manifest.validate_every >= 1, "validate-interval is 0; at least 1 second")
    check(manifest.keys, "there are no keys: nothing to keep alive")
    once([key.name for key in manifest.keys], "keys")
    for key in manifest.keys:
        check(slug(key.name, "_-"), f"key `{key.name}` is not [a-z0-9_-], 1 to 64 characters")
    settings = {setting.name: setting for setting in manifest.settings}
    once([setting.name for setting in manifest.settings], "settings")
    for name, setting in settings.items():
        check(slug(name, "_"), f"setting `{name}` is not [a-z0-9_], 1 to 64 characters")
        is_choice = setting.kind is SettingKind.CHOICE
        check(is_choice == bool(setting.choices), f"setting `{name}`: a choice has choices, nothing else has")
        if is_choice and setting.default is not None:
            fault = f"setting `{name}`: its default `{setting.default}` is no choice"
            check(setting.default in setting.choices, fault)
    once([method.name for method in manifest.methods], "methods")
    for method in manifest.methods:
        check(slug(method.name, "-"), f"method `{method.name}` is not [a-z0-9-], 1 to 64 characters")
        chosen = method.commit_class_setting
        if chosen is not None:
            fits = chosen in settings and {*settings[chosen].choices} <= {*CommitClass.names()}
            check(fits, f"method `{method.name}`: `{chosen}` is no choice setting of commit classes")

    def known(name: str) -> str | None:
        # A setting without a default gets a stand-in, so that every known placeholder resolves.
        if name not in settings:
            return None
        stand_in = "https://host.example" if settings[name].kind is SettingKind.URL else "x"
        return settings[name].default or stand_in

    def filled(pattern: str, what: str) -> str | None:
        try:
            return fill(pattern, known)
        except Unfilled as error:
            found.append(f"{what} {error}")
            return None

    origins = []
    for one in manifest.origins:
        url = filled(one, "origin")
        if url is not None:
            secure = "{" in one or url.startswith("https://")
            fine = origin(url) == url and "*" not in url and secure
            check(fine, f"origin `{one}` is not `https://host[:port]` of one host")
            origins.append(url)
    url = filled(manifest.validate_url, "validate-url")
    if url is not None:
        fault = f"validate-url `{manifest.validate_url}` is not at one of the origins"
        check(origin(url) in origins, fault)
    for key in manifest.keys:
        if isinstance(key.location, Cookie):
            for pattern in (key.location.name, key.location.domain, key.location.path):
                filled(pattern, f"cookie of key `{key.name}`:")
    return found
