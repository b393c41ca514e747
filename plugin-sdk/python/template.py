"""Templates: what a request says, with secrets by reference. Nothing here ever holds a secret; the
host puts the bytes in. One level of computing over secrets is all the contract has, so encoding a
computed part again is an error here, as it is a compile error in Rust."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Union

from . import encode


class Encoding(Enum):
    RAW = "raw"
    FORM = "form"
    PERCENT = "percent"
    JSON = "json"
    BASE64 = "base64"
    BASE64_URL = "base64-url"
    HEX = "hex"
    SHA1_HEX = "sha1-hex"
    SHA256_HEX = "sha256-hex"


_BY_HAND = {
    Encoding.FORM: encode.form,
    Encoding.PERCENT: encode.percent,
    Encoding.JSON: encode.json,
    Encoding.BASE64: encode.base64,
    Encoding.BASE64_URL: encode.base64_url,
    Encoding.HEX: encode.hex,
}


@dataclass(frozen=True)
class Text:
    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Secret:
    key: str
    encoding: Encoding = Encoding.RAW

    def __str__(self) -> str:
        if self.encoding is Encoding.RAW:
            return f"{{{self.key}}}"
        return f"{{{self.key}|{self.encoding.value}}}"


Leaf = Union[Text, Secret]


@dataclass(frozen=True)
class Encoded:
    leaves: tuple[Leaf, ...]
    encoding: Encoding

    def __str__(self) -> str:
        return f"{{{''.join(map(str, self.leaves))}|{self.encoding.value}}}"


Part = Union[Text, Secret, Encoded]


@dataclass(frozen=True)
class Template:
    """What goes into a URL, a header or a body. Made by `text` and `secret`, joined with `+`; a
    plain string joins as text. As a string it shows secrets as `{key}`, encodings as `{key|form}`,
    computed parts as `{user:{key}|base64}`."""

    parts: tuple[Part, ...] = ()
    # One piece, as `text` and `secret` give it: encoded by itself, which needs no computed part.
    is_leaf: bool = False

    def __add__(self, other: Piece) -> Template:
        return Template(self.parts + to_template(other).parts)

    def __radd__(self, other: str) -> Template:
        return Template(to_template(other).parts + self.parts)

    def __str__(self) -> str:
        return "".join(map(str, self.parts))

    def form(self) -> Template:
        return self._encoded(Encoding.FORM)

    def percent(self) -> Template:
        return self._encoded(Encoding.PERCENT)

    def json(self) -> Template:
        """The inside of a JSON string, without the quotes."""
        return self._encoded(Encoding.JSON)

    def base64(self) -> Template:
        return self._encoded(Encoding.BASE64)

    def base64_url(self) -> Template:
        return self._encoded(Encoding.BASE64_URL)

    def hex(self) -> Template:
        return self._encoded(Encoding.HEX)

    def sha1_hex(self) -> Template:
        return self._encoded(Encoding.SHA1_HEX)

    def sha256_hex(self) -> Template:
        return self._encoded(Encoding.SHA256_HEX)

    def within(self, encoding: Encoding) -> Template:
        """Encoded as one value of a body or query; a lone piece needs no second level."""
        match self.parts:
            case ():
                return self
            case (Text(),) | (Secret(encoding=Encoding.RAW),):
                return Template(self.parts, is_leaf=True)._encoded(encoding)
        return self._encoded(encoding)

    def has_text(self, character: str) -> bool:
        """Whether the plain text in it has `character`."""
        return any(isinstance(part, Text) and character in part.text for part in self.parts)

    def _encoded(self, encoding: Encoding) -> Template:
        by_hand = _BY_HAND.get(encoding)
        if self.is_leaf and by_hand:
            match self.parts:
                case (Text(plain),):
                    return Template((Text(by_hand(plain)),))
                case (Secret(key),):
                    return Template((Secret(key, encoding),))
        leaves = tuple(part for part in self.parts if not isinstance(part, Encoded))
        if len(leaves) != len(self.parts):
            raise TypeError(
                f"`{self}` is computed already, and the contract has one level of that: "
                f"no {encoding.value} over it"
            )
        return Template((Encoded(leaves, encoding),))


Piece = Union[str, Template]
Fields = Union[Mapping[str, Piece], Iterable["tuple[str, Piece]"]]


def text(plain: str) -> Template:
    """Plain text, known to the plugin."""
    if not isinstance(plain, str):
        raise TypeError(f"text is {plain!r}; a string is due")
    return Template((Text(plain),), is_leaf=True)


def secret(key: str) -> Template:
    """The value of a key of this credential, put in by the host."""
    return Template((Secret(key),), is_leaf=True)


def to_template(piece: Piece) -> Template:
    """A string is text."""
    return piece if isinstance(piece, Template) else text(piece)


def bearer(key: str) -> Template:
    """`Bearer <key>`, for the `Authorization` header (RFC 6750)."""
    return "Bearer " + secret(key)


def basic(user: Piece, password: Piece) -> Template:
    """`Basic <base64 of user:password>`, for the `Authorization` header (RFC 7617). OAuth 2.0 wants
    both form-encoded first: `basic(text(id).form(), secret("key").form())`."""
    return "Basic " + (to_template(user) + ":" + password).base64()


def _entries(fields: Fields) -> Iterable[tuple[str, Piece]]:
    return fields.items() if isinstance(fields, Mapping) else fields


def form(fields: Fields) -> Template:
    """A form body; names and values are form-encoded, secrets by the host."""
    body = Template()
    for index, (name, value) in enumerate(_entries(fields)):
        body += f"{'&' if index else ''}{encode.form(name)}="
        body += to_template(value).within(Encoding.FORM)
    return body


def json_object(fields: Fields) -> Template:
    """A JSON object of strings; secrets are escaped by the host. For anything deeper, write the
    JSON as text around `secret("key").json()`."""
    body = text("{")
    for index, (name, value) in enumerate(_entries(fields)):
        body += f'{"," if index else ""}"{encode.json(name)}":"'
        body += to_template(value).within(Encoding.JSON) + '"'
    return body + "}"
