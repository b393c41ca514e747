"""Write a Keywheel provider in Python: what a provider needs, in one import.

The same words and the same safety as the SDK for Rust. Nothing here reads a clock, a file or the
network, and nothing ever holds a secret: requests refer to keys by name, and the host puts the
bytes in. Everything is imported when the component is built: at run time there are no files, so
an import inside a function would end the call.
"""

from . import date, encode, log
from .cx import Cx, KeyState
from .manifest import CommitClass, Key, Manifest, Method, Setting, SettingKind
from .provider import Provider
from .request import Request, SendError, header, json
from .response import Captured, Response
from .template import Template, basic, bearer, form, json_object, secret, text
from .verdict import Evidence, Outcome, Reason, Stop, Verdict

__all__ = [
    "Captured",
    "CommitClass",
    "Cx",
    "Evidence",
    "Key",
    "KeyState",
    "Manifest",
    "Method",
    "Outcome",
    "Provider",
    "Reason",
    "Request",
    "Response",
    "SendError",
    "Setting",
    "SettingKind",
    "Stop",
    "Template",
    "Verdict",
    "basic",
    "bearer",
    "date",
    "encode",
    "form",
    "header",
    "json",
    "json_object",
    "log",
    "secret",
    "text",
]
