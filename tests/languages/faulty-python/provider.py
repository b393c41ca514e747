"""A provider in Python that goes wrong as its setting says, for the tests of tests/languages.rs."""

import sys
import time

from keywheel import Cx, Key, Manifest, Provider, Setting, Verdict


def recurses(cx: Cx) -> int:
    return recurses(cx) + 1


def loops(cx: Cx) -> None:
    while True:
        pass


def hoards(cx: Cx) -> None:
    hoard = []
    while True:
        hoard.append(bytearray(1 << 20))


WAYS = {
    "throws": lambda cx: {}["nothing"],
    "recurses": recurses,
    "loops": loops,
    "hoards": hoards,
    "exits": lambda cx: sys.exit(0),
    "asks-the-clock": lambda cx: time.time(),
}


class Faulty(Provider):
    def describe(self) -> Manifest:
        return Manifest(
            service="faulty-python",
            title="Goes wrong",
            version="0.1.0",
            settings=[Setting.choice("way", [*WAYS], required=True)],
            origins=["https://shop.example"],
            validate_url="https://shop.example/me",
            keys=[Key.token("token")],
        )

    def validate(self, cx: Cx) -> Verdict:
        return WAYS[cx.setting("way")](cx)


provider = Faulty()
