"""Fills `{setting}`, `{setting.host}` and `{setting.origin}` into text. Pure; the same rules as the
host's for a manifest."""

from __future__ import annotations

import re
from collections.abc import Callable

_URL = re.compile(r"(https?)://([^/?#@]+)(?:[/?#]|$)", re.IGNORECASE)

Lookup = Callable[[str], "str | None"]


class Unfilled(ValueError):
    """A placeholder that can't be filled, in words."""


def fill(pattern: str, lookup: Lookup) -> str:
    """Fills `pattern` from `lookup`. Where a value ends in `/` and what follows begins with one, a
    single `/` is written: `{base_url}/api` is right with and without a slash at the end."""
    out = ""
    rest = pattern
    after_value = False
    while "{" in rest:
        before, _, rest = rest.partition("{")
        out = _push(out, before, after_value)
        after_value = after_value and not before
        placeholder, close, rest = rest.partition("}")
        if not close:
            raise Unfilled(f"`{pattern}` has a `{{` without its `}}`")
        out = _push(out, _value(pattern, placeholder, lookup), after_value)
        after_value = True
    return _push(out, rest, after_value)


def _push(out: str, piece: str, after_value: bool) -> str:
    doubled = after_value and out.endswith("/") and piece.startswith("/")
    return out + (piece[1:] if doubled else piece)


def _value(pattern: str, placeholder: str, lookup: Lookup) -> str:
    name, _, view = placeholder.partition(".")
    found = lookup(name)
    if found is None:
        raise Unfilled(f"`{pattern}` asks for `{name}`, which is no setting of this provider")
    if not view:
        return found
    if view not in ("host", "origin"):
        raise Unfilled(f"`{pattern}` asks for `.{view}`; a url setting has `.host` and `.origin`")
    seen = _host(found) if view == "host" else origin(found)
    if seen is None:
        raise Unfilled(f"setting `{name}` is `{found}`, which is no http or https URL")
    return seen


def _host(url: str) -> str | None:
    found = _URL.match(url)
    if not found:
        return None
    host, colon, port = found[2].rpartition(":")
    # The last colon of `[::1]` is inside the brackets.
    return host if colon and not port.endswith("]") else found[2]


def origin(url: str) -> str | None:
    """`scheme://host[:port]` in lower case, without the port its scheme has anyway."""
    found = _URL.match(url)
    if not found:
        return None
    scheme, authority = found[1].lower(), found[2].lower()
    return f"{scheme}://{authority.removesuffix(':443' if scheme == 'https' else ':80')}"
