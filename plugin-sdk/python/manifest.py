"""What a provider says of itself. Plain values of the contract; nothing is checked here, the host
does that (and testing.py in your tests)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

# Seldom enough for any service, often enough that a dead session is noticed before lunch.
VALIDATE_EVERY = 15 * 60


class CommitClass(Enum):
    """What a rotation does to the old secret, which decides what may be repeated."""

    SLIDING = "sliding"
    ADDITIVE = "additive"
    COMMIT_ON_USE = "commit-on-use"
    GRACE = "grace"
    BURN_ON_ISSUE = "burn-on-issue"

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The contract's names, in its order: the choices of a commit class setting."""
        return tuple(known.value for known in cls)


class SettingKind(Enum):
    TEXT = "text"
    URL = "url"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    DURATION = "duration"
    CHOICE = "choice"


@dataclass(frozen=True)
class Cookie:
    """A cookie as the service sets it. Every field may use settings."""

    name: str
    domain: str
    path: str = "/"


@dataclass(frozen=True)
class Key:
    """A secret of the credential. Without a cookie it is a token, which templates place and
    request rules capture."""

    name: str
    location: Cookie | None = None
    required: bool = True
    # Ask to see the bytes; the operator is asked by name and may say no.
    reveal: bool = False
    # One sentence for the person who adds a credential.
    help: str = ""

    @staticmethod
    def cookie(
        name: str,
        cookie: str,
        domain: str,
        *,
        path: str = "/",
        required: bool = True,
        reveal: bool = False,
        help: str = "",
    ) -> Key:
        """A key that is the cookie `cookie` of `domain`. The host attaches and captures it."""
        return Key(name, Cookie(cookie, domain, path), required, reveal, help)

    @staticmethod
    def token(name: str, *, required: bool = True, reveal: bool = False, help: str = "") -> Key:
        return Key(name, None, required, reveal, help)


@dataclass(frozen=True)
class Setting:
    """A value the operator chooses for each credential."""

    name: str
    kind: SettingKind
    required: bool = False
    default: str | None = None
    choices: tuple[str, ...] = ()
    # One sentence for the person who adds a credential.
    help: str = ""

    @staticmethod
    def text(name: str, *, required: bool = False, default: str | None = None, help: str = "") -> Setting:
        return Setting(name, SettingKind.TEXT, required, default, (), help)

    @staticmethod
    def url(name: str, *, required: bool = False, default: str | None = None, help: str = "") -> Setting:
        """Gives `{name}`, `{name.host}` and `{name.origin}`."""
        return Setting(name, SettingKind.URL, required, default, (), help)

    @staticmethod
    def integer(name: str, *, required: bool = False, default: str | None = None, help: str = "") -> Setting:
        return Setting(name, SettingKind.INTEGER, required, default, (), help)

    @staticmethod
    def boolean(name: str, *, required: bool = False, default: str | None = None, help: str = "") -> Setting:
        return Setting(name, SettingKind.BOOLEAN, required, default, (), help)

    @staticmethod
    def duration(name: str, *, required: bool = False, default: str | None = None, help: str = "") -> Setting:
        return Setting(name, SettingKind.DURATION, required, default, (), help)

    @staticmethod
    def choice(
        name: str,
        choices: Sequence[str],
        *,
        required: bool = False,
        default: str | None = None,
        help: str = "",
    ) -> Setting:
        return Setting(name, SettingKind.CHOICE, required, default, tuple(choices), help)


@dataclass(frozen=True)
class Method:
    """One way to rotate."""

    name: str
    commit_class: CommitClass
    # A choice setting with `CommitClass.names()` by which the operator says how the service at
    # hand behaves.
    commit_class_setting: str | None = None
    # One sentence for the operator.
    help: str = ""
    # Where the service documents what the method does to the old secret, which is what its commit
    # class says.
    source: str | None = None


@dataclass(frozen=True)
class Manifest:
    # `[a-z0-9-]+`
    service: str
    # One line for people.
    title: str
    # Of the plugin.
    version: str
    # The URL that tells whether a credential lives. May use settings; requests reach it as
    # `{validate_url}`.
    validate_url: str
    # What the plugin may reach: `https://api.example.com` or `{base_url.origin}`.
    origins: Sequence[str]
    keys: Sequence[Key]
    settings: Sequence[Setting] = ()
    # Ways to rotate; the first is preferred.
    methods: Sequence[Method] = ()
    # In seconds.
    validate_every: int = VALIDATE_EVERY
    # Rotate a generation that gets this old, in seconds, whether or not it says when it expires.
    max_age: int | None = None
    # The service ends a session that nobody used for this many seconds, so it is used before.
    idle_limit: int | None = None
    # Where the service documents what this provider relies on.
    sources: Sequence[str] = field(default=())

    def extras(self) -> list[tuple[str, str]]:
        """What the contract has no type for, as it has it."""
        found = [("source", url) for url in self.sources]
        if self.idle_limit is not None:
            found.append(("idle-limit-seconds", str(self.idle_limit)))
        found += [(f"class-source:{method.name}", method.source) for method in self.methods if method.source]
        return found
