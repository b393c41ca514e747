"""Encodings of text the plugin knows, the same as the host applies to secrets. Pure; it never
sees a secret, those are encoded by the host."""

import base64 as _base64

_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_JSON = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _escaped(text: str, plain: bytes) -> str:
    plain = _LETTERS + plain
    return "".join(chr(byte) if byte in plain else f"%{byte:02X}" for byte in text.encode())


def percent(text: str) -> str:
    """RFC 3986 percent-encoding of everything but unreserved characters."""
    return _escaped(text, b"-._~")


def form(text: str) -> str:
    """`application/x-www-form-urlencoded`, as the URL standard writes it."""
    return _escaped(text, b"*-._ ").replace(" ", "+")


def json(text: str) -> str:
    """The inside of a JSON string, without the quotes."""
    return "".join(
        _JSON.get(character) or (f"\\u{ord(character):04x}" if character < " " else character)
        for character in text
    )


def base64(text: str) -> str:
    """RFC 4648 section 4, with padding."""
    return _base64.b64encode(text.encode()).decode()


def base64_url(text: str) -> str:
    """RFC 4648 section 5, without padding."""
    return _base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def hex(text: str) -> str:
    """Lower-case hexadecimal."""
    return text.encode().hex()
