"""An answer as the plugin may see it: captured and known secrets are gone from it."""

from __future__ import annotations

import json as _json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from . import host
from .date import parse_http
from .verdict import Outcome, Stop

# Enough to recognise an error by, short enough for a table.
_EXCERPT_CHARS = 120
_U32_MAX = 0xFFFF_FFFF
# 408 and 425 ask to repeat the request.
_SAYS_NOTHING = (408, 425, 429)
_INDEX = re.compile(r"0|[1-9]\d*", re.ASCII)
_SECONDS = re.compile(r"\+?\d{1,20}", re.ASCII)
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class Captured:
    """A key whose value the answer set or deleted."""

    key: str
    # None: the answer deleted it.
    fingerprint: str | None
    # It differs from the value the attempt started with.
    changed: bool
    expires: int | None = None

    @property
    def is_new(self) -> bool:
        """A value that differs from the one before; a deletion is not one."""
        return self.changed and self.fingerprint is not None


class Response:
    def __init__(self, method: str, answer: host.Answer, now: int):
        self._method = method
        self._answer = answer
        self._now = now

    @property
    def status(self) -> int:
        return self._answer.status

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    @property
    def url(self) -> str:
        """Where the answer came from, after redirects."""
        return self._answer.url

    def header(self, name: str) -> str | None:
        """The first header of that name, in any case."""
        return next((value for known, value in self._answer.headers if known.lower() == name.lower()), None)

    @property
    def bytes(self) -> bytes:
        return self._answer.body

    @property
    def text(self) -> str:
        """The body; what isn't UTF-8 becomes U+FFFD."""
        return self.bytes.decode(errors="replace")

    def json(self) -> Any:
        """The body as JSON. A page or garbage in its place stops the attempt as `unknown`: it says
        nothing of the credential."""
        if self.is_html:
            raise self._nothing_learnt("with HTML where JSON was due")
        try:
            plain = self.bytes.decode()
            value = _json.loads(plain, parse_constant=_no_number)
            # Half of a character pair is no text, and could not be said again.
            if _HALF_PAIR.search(plain):
                _json.dumps(value, ensure_ascii=False).encode()
            return value
        except (ValueError, RecursionError) as error:
            raise self._nothing_learnt(f"with a body that is not JSON ({error})") from None

    def pick(self, pointer: str) -> str | None:
        """The text, number or boolean at a JSON pointer (RFC 6901), as text; handy for an
        identity."""
        found = at(self.json(), pointer)
        if isinstance(found, bool):
            return "true" if found else "false"
        return str(found) if isinstance(found, (str, int, float)) else None

    @property
    def is_html(self) -> bool:
        """Whether the answer is a page: a firewall, a login form, an error for people."""
        kind = self.header("content-type")
        if kind is not None:
            return "html" in kind.lower()
        return self.bytes.lstrip(b"\t\n\x0c\r ").startswith(b"<")

    @property
    def retry_after(self) -> int | None:
        """Seconds to wait, from `Retry-After` as a number or a date."""
        value = (self.header("retry-after") or "").strip()
        if _SECONDS.fullmatch(value):
            return int(value) if int(value) <= _U32_MAX else None
        at = parse_http(value)
        return None if at is None else min(max(at - self._now // 1_000, 0), _U32_MAX)

    def captured(self, key: str) -> Captured | None:
        """What the host kept of this answer for `key`."""
        return next((captured for captured in self._answer.captured if captured.key == key), None)

    def changed(self, key: str) -> bool:
        """Whether this answer gave `key` a new value."""
        captured = self.captured(key)
        return captured is not None and captured.is_new

    @property
    def changed_any(self) -> bool:
        """Whether this answer gave any key a new value."""
        return any(captured.is_new for captured in self._answer.captured)

    def outcome(self) -> Outcome:
        """`rotated` where a key got a new value, else `unchanged`. Ask only of an answer that shows
        the credential to be alive."""
        return Outcome.rotated() if self.changed_any else Outcome.unchanged()

    def unexpected(self) -> Stop:
        """The stop for an answer that fits no case you know: `unknown`, with what was answered and
        when to come back. Raise it."""
        location = self.header("location")
        if location is not None:
            return self._nothing_learnt(f"with a redirect to {location[:_EXCERPT_CHARS]}")
        return self._nothing_learnt("with a page" if self.is_html else "")

    @property
    def says_nothing(self) -> bool:
        """Rate limits, server errors and challenges are about the service, not the credential."""
        # Cloudflare marks its challenges.
        return self.status in _SAYS_NOTHING or self.status >= 500 or self.header("cf-mitigated") is not None

    def _nothing_learnt(self, what: str) -> Stop:
        line = f"{self._method} {self.url} answered {self.status} {what}"
        return Stop.unknown(line.rstrip(), retry_after=self.retry_after)


def at(value: Any, pointer: str) -> Any:
    """What a JSON pointer leads to, or None."""
    if pointer == "":
        return value
    if not pointer.startswith("/"):
        return None
    for step in pointer[1:].split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and _INDEX.fullmatch(name) and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")
