"""What one attempt knows: settings, the state of each key, the time. Never a secret's bytes, unless
the operator granted them to `reveal`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from . import host
from .manifest import Manifest
from .placeholders import Unfilled, fill
from .request import Request, SendError
from .verdict import Stop

_DURATION = re.compile(r"\s*(\+?\d{1,20})\s*([smhd]?)", re.ASCII)
_NUMBER = re.compile(r"[+-]?\d{1,20}", re.ASCII)
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
_U32_MAX = 0xFFFF_FFFF


@dataclass(frozen=True)
class KeyState:
    """What the plugin may know of a key without seeing it."""

    name: str
    present: bool
    fingerprint: str | None = None
    expires: int | None = None


@dataclass(frozen=True)
class Context:
    """Everything the host said."""

    credential_id: str
    profile_id: str | None
    settings: list[tuple[str, str]]
    keys: list[KeyState]
    # Counts from 1 for each credential.
    attempt: int
    # Milliseconds since 1970.
    now: int
    extras: list[tuple[str, str]] = field(default_factory=list)


class Cx:
    def __init__(self, context: Context, describe: Callable[[], Manifest]):
        self.context = context
        self._describe = describe

    def get(self, url: str) -> Request:
        """A GET request; see `request`."""
        return self.request("GET", url)

    def post(self, url: str) -> Request:
        """A POST request; see `request`."""
        return self.request("POST", url)

    def request(self, method: str, url: str) -> Request:
        """A request to `url`, in which `{name}`, `{name.host}` and `{name.origin}` stand for
        settings and `{validate_url}` for the manifest's. A name that is no setting makes `send`
        fail."""
        try:
            return Request(method, self._filled(url), self.now)
        except Unfilled as error:
            return Request(method, SendError("malformed", error), self.now)

    def fill(self, pattern: str) -> str:
        """`pattern` with its settings filled in."""
        try:
            return self._filled(pattern)
        except Unfilled as error:
            raise Stop.failed(str(error)) from None

    def setting(self, name: str) -> str:
        """The value or default of a setting; empty where it has neither."""
        return self._find(name) or ""

    def setting_int(self, name: str) -> int:
        """A setting as a whole number."""
        value = self.setting(name)
        if not _NUMBER.fullmatch(value):
            raise Stop.failed(f"setting `{name}` is `{value}`, not a whole number")
        return int(value)

    def setting_bool(self, name: str) -> bool:
        """A setting that is `true` or `false`."""
        value = self.setting(name)
        if value not in ("true", "false"):
            raise Stop.failed(f"setting `{name}` is `{value}`, not true or false")
        return value == "true"

    def setting_seconds(self, name: str) -> int:
        """A duration setting in seconds: `90`, `90s`, `15m`, `2h`, `1d`."""
        value = self.setting(name)
        found = _DURATION.fullmatch(value)
        seconds = int(found[1]) * _UNITS[found[2]] if found else None
        if seconds is None or seconds > _U32_MAX:
            raise Stop.failed(
                f"setting `{name}` is `{value}`; a duration is whole seconds or a number with s, m, h or d"
            )
        return seconds

    def key(self, name: str) -> KeyState | None:
        """What is known of a key without seeing it."""
        return next((key for key in self.context.keys if key.name == name), None)

    def has(self, name: str) -> bool:
        """Whether the credential has this key now."""
        key = self.key(name)
        return key is not None and key.present

    def reveal(self, key: str) -> bytes:
        """The bytes of a key that the manifest asked to see, if the operator granted it."""
        try:
            return host.reveal(key)
        except host.Refused as refused:
            raise Stop.needs_human(f"key `{key}` was not revealed: {refused.what}") from None

    @property
    def now(self) -> int:
        """The host's clock when the attempt began, in milliseconds since 1970."""
        return self.context.now

    def _filled(self, pattern: str) -> str:
        def lookup(name: str) -> str | None:
            found = self._find(name)
            if found is not None or name != "validate_url":
                return found
            try:
                return fill(self._describe().validate_url, self._find)
            except Unfilled:
                return None

        return fill(pattern, lookup)

    def _find(self, name: str) -> str | None:
        return next((value for known, value in self.context.settings if known == name), None)
