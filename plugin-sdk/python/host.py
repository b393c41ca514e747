"""The one door to the host API. In a plugin it opens to the contract's imports, in a test to the
script of testing.py. Nothing else calls the host."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .request import Request
    from .response import Captured


@dataclass
class Answer:
    """What came back: names of headers in lower case, secrets gone."""

    status: int
    url: str
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    captured: list[Captured] = field(default_factory=list)


class Refused(Exception):
    """The host has no answer: `tag` as the contract names it, and what it says of it."""

    def __init__(self, tag: str, what: object = None):
        super().__init__(tag, what)
        self.tag = tag
        self.what = what


class Host(Protocol):
    def send(self, request: Request) -> Answer:
        """Raises `Refused`."""

    def reveal(self, key: str) -> bytes:
        """Raises `Refused`, with what to do as `what`."""

    def emit(self, level: str, message: str) -> None: ...


_host: Host | None = None


def connect(to: Host | None) -> Host | None:
    """Opens the door, and gives back who was there before."""
    global _host
    before, _host = _host, to
    return before


def _connected() -> Host:
    if _host is None:
        raise RuntimeError("there is no host here: run the provider with keywheel.testing.Case")
    return _host


def send(request: Request) -> Answer:
    return _connected().send(request)


def reveal(key: str) -> bytes:
    return _connected().reveal(key)


def emit(level: str, message: str) -> None:
    # A line nobody can hear is no reason to fail.
    if _host is not None:
        _host.emit(level, message)
