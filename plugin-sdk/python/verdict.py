"""What validate and rotate may say, and why they may stop early. A verdict is evidence, not a
guess: everything that taught nothing ends as `unknown`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union


@dataclass(frozen=True)
class Evidence:
    """What supports a good verdict."""

    # When the credential as a whole stops working, in milliseconds since 1970.
    expires: int | None = None
    # The account, as the service names it. The host pins the first one it sees.
    identity: str | None = None
    # When to ask again, in seconds.
    next: int | None = None
    note: str | None = None


@dataclass(frozen=True)
class Reason:
    """What supports any other verdict."""

    message: str
    # Seconds to wait.
    retry_after: int | None = None


@dataclass(frozen=True)
class Verdict:
    """What validate says: `valid`, `invalid`, `unknown` or `needs-human`."""

    tag: str
    why: Union[Evidence, Reason]

    @staticmethod
    def valid(
        *,
        identity: str | None = None,
        expires: int | None = None,
        next: int | None = None,
        note: str | None = None,
    ) -> Verdict:
        """The service accepted the credential."""
        return Verdict("valid", Evidence(expires, identity, next, note))

    @staticmethod
    def invalid(message: str, *, retry_after: int | None = None) -> Verdict:
        """The service said plainly that the credential is dead."""
        return Verdict("invalid", Reason(message, retry_after))

    @staticmethod
    def unknown(message: str, *, retry_after: int | None = None) -> Verdict:
        """Nothing was learnt."""
        return Verdict("unknown", Reason(message, retry_after))

    @staticmethod
    def needs_human(message: str, *, retry_after: int | None = None) -> Verdict:
        """Only a person can go on."""
        return Verdict("needs-human", Reason(message, retry_after))


@dataclass(frozen=True)
class Outcome:
    """What rotate says: `rotated`, `unchanged`, `invalid`, `unknown` or `needs-human`."""

    tag: str
    why: Union[Evidence, Reason]

    @staticmethod
    def rotated(
        *,
        identity: str | None = None,
        expires: int | None = None,
        next: int | None = None,
        note: str | None = None,
    ) -> Outcome:
        """The service issued a new secret, which the host has captured."""
        return Outcome("rotated", Evidence(expires, identity, next, note))

    @staticmethod
    def unchanged(
        *,
        identity: str | None = None,
        expires: int | None = None,
        next: int | None = None,
        note: str | None = None,
    ) -> Outcome:
        """The service was asked and kept the secret as it is."""
        return Outcome("unchanged", Evidence(expires, identity, next, note))

    @staticmethod
    def invalid(message: str, *, retry_after: int | None = None) -> Outcome:
        """The service said plainly that the credential is dead."""
        return Outcome("invalid", Reason(message, retry_after))

    @staticmethod
    def unknown(message: str, *, retry_after: int | None = None) -> Outcome:
        """Nothing was learnt."""
        return Outcome("unknown", Reason(message, retry_after))

    @staticmethod
    def needs_human(message: str, *, retry_after: int | None = None) -> Outcome:
        """Only a person can go on."""
        return Outcome("needs-human", Reason(message, retry_after))


class Stop(Exception):
    """Why an attempt stops before its end. Raised out of validate and rotate; the same is then said
    as a verdict or an outcome. `failed` is the plugin's own fault, or a request it may not make."""

    def __init__(self, kind: str, message: str, retry_after: int | None = None):
        super().__init__(message)
        self.kind = kind
        self.reason = Reason(message, retry_after)

    @staticmethod
    def unknown(message: str, *, retry_after: int | None = None) -> Stop:
        return Stop("unknown", message, retry_after)

    @staticmethod
    def invalid(message: str, *, retry_after: int | None = None) -> Stop:
        return Stop("invalid", message, retry_after)

    @staticmethod
    def needs_human(message: str, *, retry_after: int | None = None) -> Stop:
        return Stop("needs-human", message, retry_after)

    @staticmethod
    def failed(message: str) -> Stop:
        return Stop("failed", message)
