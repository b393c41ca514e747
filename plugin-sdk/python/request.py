"""One request, built so that the short way is the safe way: no redirects unless asked, secrets by
reference, encodings chosen by the place a value goes to."""

from __future__ import annotations

from dataclasses import dataclass, replace

from . import encode, host, template
from .response import Response
from .template import Encoding, Fields, Piece, Template, to_template
from .verdict import Stop


@dataclass(frozen=True)
class Place:
    """Where an answer holds something: `json-pointer` or `header`."""

    tag: str
    value: str


@dataclass(frozen=True)
class Source:
    """Where an answer holds a new value; made by `json` and `header`."""

    place: Place
    seconds: Place | None = None

    def expires_in(self, seconds: Source) -> Source:
        """Where the same answer says how many seconds the value lives."""
        return replace(self, seconds=seconds.place)


def json(pointer: str) -> Source:
    """A place in a JSON answer, by RFC 6901: `json("/access_token")`."""
    return Source(Place("json-pointer", pointer))


def header(name: str) -> Source:
    """The value of a response header."""
    return Source(Place("header", name))


@dataclass(frozen=True)
class Capture:
    key: str
    source: Source


_NO_ANSWER = {
    "malformed": "the request could not be built: {}",
    "denied": "the request is not allowed: {}",
    "dns": "no address was found: {}",
    "connect": "no connection: {}",
    "tls": "no secure connection: {}",
    "timeout": "no answer in time",
    "too-large": "the answer is longer than {} bytes",
    "protocol": "the answer is not HTTP: {}",
    "budget": "the attempt used up its budget: {}",
    "other": "{}",
}
_OWN_FAULT = ("malformed", "denied", "budget")


class SendError(Stop):
    """Why there is no answer. A stop: what the plugin did wrong is a failure, what the network did
    says nothing of the credential."""

    def __init__(self, tag: str, what: object = None):
        super().__init__("failed" if tag in _OWN_FAULT else "unknown", _NO_ANSWER.get(tag, tag + ": {}").format(what))
        self.tag = tag


class Request:
    """Made by `cx.get`, `cx.post` and `cx.request`. Does nothing until it is sent."""

    def __init__(self, method: str, url: str | SendError, now: int):
        self._unbuilt = url if isinstance(url, SendError) else None
        self._now = now
        self.method = method
        self.url = Template() if isinstance(url, SendError) else to_template(url)
        self.headers: list[tuple[str, Template]] = []
        self.content: Template | None = None
        self.with_cookies = False
        self.captures: list[Capture] = []
        self.hops = 0
        self.seconds: int | None = None

    def cookies(self) -> Request:
        """Attach the credential's cookies, by the rules browsers follow."""
        self.with_cookies = True
        return self

    def header(self, name: str, value: Piece) -> Request:
        self.headers.append((name, to_template(value)))
        return self

    def query(self, name: str, value: Piece) -> Request:
        """Adds `name=value` to the query, percent-encoded."""
        separator = "&" if self.url.has_text("?") else "?"
        self.url += f"{separator}{encode.percent(name)}=" + to_template(value).within(Encoding.PERCENT)
        return self

    def segment(self, value: Piece) -> Request:
        """Adds `/value` to the path, percent-encoded."""
        self.url += "/" + to_template(value).within(Encoding.PERCENT)
        return self

    def form(self, fields: Fields) -> Request:
        """A form body with its content type."""
        return self.header("content-type", "application/x-www-form-urlencoded").body(template.form(fields))

    def json(self, fields: Fields) -> Request:
        """A JSON body with its content type: an object of strings."""
        return self.header("content-type", "application/json").body(template.json_object(fields))

    def body(self, body: Piece) -> Request:
        self.content = to_template(body)
        return self

    def capture(self, key: str, source: Source) -> Request:
        """Keep what a 2xx answer has at `source` as the new value of `key`. The plugin sees that it
        changed, never what it is. A mapped cookie needs no rule."""
        self.captures.append(Capture(key, source))
        return self

    def redirects(self, hops: int) -> Request:
        """Follow up to `hops` redirects, at most 5. Without it a redirect is the answer."""
        self.hops = hops
        return self

    def timeout(self, seconds: int) -> Request:
        """For the whole exchange; the host has a cap of its own."""
        self.seconds = seconds
        return self

    def send(self) -> Response:
        """Sends, and stops the attempt as `unknown` where nothing can be learnt: no connection, a
        time-out, a rate limit, a server error, a challenge page. What comes back is an answer worth
        judging."""
        response = self.send_any()
        if response.says_nothing:
            raise response.unexpected()
        return response

    def send_any(self) -> Response:
        """Sends, and gives back every answer as it is. For services whose 429 or 5xx say something.
        Raises `SendError` where there is no answer; uncaught it stops as `send` would."""
        if self._unbuilt:
            raise self._unbuilt
        try:
            answer = host.send(self)
        except host.Refused as refused:
            raise SendError(refused.tag, refused.what) from None
        return Response(self.method, answer, self._now)
