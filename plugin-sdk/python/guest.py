"""What stands between the contract's exports and a provider. What a provider raises that is no
`Stop` is its own fault, and is said as such: an exception that got out would end the instance
without a word. Imported by the component alone: natively there are no bindings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports import http, log, secrets, types

from . import host
from .call import run
from .cx import Context, Cx, KeyState
from .manifest import Cookie, Key, Manifest
from .provider import Provider
from .request import Place, Request
from .response import Captured
from .template import Encoded, Leaf, Part, Secret, Template, Text
from .verdict import Evidence, Outcome, Reason, Verdict

_ERRORS = {
    http.Error_Denied: "denied",
    http.Error_Dns: "dns",
    http.Error_Connect: "connect",
    http.Error_Tls: "tls",
    http.Error_Timeout: "timeout",
    http.Error_TooLarge: "too-large",
    http.Error_Protocol: "protocol",
    http.Error_Budget: "budget",
    http.Error_Other: "other",
}
_VERDICTS = {
    "valid": types.Verdict_Valid,
    "invalid": types.Verdict_Invalid,
    "unknown": types.Verdict_Unknown,
    "needs-human": types.Verdict_NeedsHuman,
}
_OUTCOMES = {
    "rotated": types.Outcome_Rotated,
    "unchanged": types.Outcome_Unchanged,
    "invalid": types.Outcome_Invalid,
    "unknown": types.Outcome_Unknown,
    "needs-human": types.Outcome_NeedsHuman,
}


class ContractHost:
    """The contract's imports."""

    def send(self, request: Request) -> host.Answer:
        try:
            answer = http.send(
                http.Request(
                    method=request.method,
                    url=_template(request.url),
                    headers=[(name, _template(value)) for name, value in request.headers],
                    body=None if request.content is None else _template(request.content),
                    cookies=request.with_cookies,
                    capture=[
                        http.Capture(rule.key, _place(rule.source.place), _place(rule.source.seconds))
                        for rule in request.captures
                    ],
                    redirects=request.hops,
                    timeout=request.seconds,
                    extras=[],
                )
            )
        except Err as error:
            raise host.Refused(_ERRORS[type(error.value)], getattr(error.value, "value", None)) from None
        captured = [Captured(one.key, one.fingerprint, one.changed, one.expires) for one in answer.captured]
        return host.Answer(answer.status, answer.url, answer.headers, answer.body, captured)

    def reveal(self, key: str) -> bytes:
        try:
            return secrets.reveal(key)
        except Err as error:
            raise host.Refused("other", error.value) from None

    def emit(self, level: str, message: str) -> None:
        log.emit(log.Level[level.upper()], message)


def exported(provider: Provider) -> type:
    """A provider as the contract's exports."""
    host.connect(ContractHost())

    class Guest(exports.Guest):
        def describe(self) -> types.Manifest:
            return _manifest(provider.describe())

        def validate(self, context: types.Context) -> types.Verdict:
            return _said(
                _VERDICTS, lambda: run("validate", Verdict, lambda: provider.validate(_cx(context, provider)))
            )

        def rotate(self, context: types.Context, method: str) -> types.Outcome:
            return _said(
                _OUTCOMES, lambda: run("rotate", Outcome, lambda: provider.rotate(_cx(context, provider), method))
            )

    return Guest


def _said(cases: dict[str, Any], say: Callable[[], tuple[str, Evidence | Reason]]) -> Any:
    tag, why = say()
    if tag == "failed":
        raise Err(types.Failure(why.message, []))
    if isinstance(why, Evidence):
        return cases[tag](types.Evidence(why.expires, why.identity, why.next, why.note, []))
    return cases[tag](types.Reason(why.message, why.retry_after, []))


def _cx(context: types.Context, provider: Provider) -> Cx:
    keys = [KeyState(key.name, key.present, key.fingerprint, key.expires) for key in context.keys]
    return Cx(
        Context(
            context.credential_id,
            context.profile_id,
            context.settings,
            keys,
            context.attempt,
            context.now,
            context.extras,
        ),
        provider.describe,
    )


def _leaf(leaf: Leaf) -> Any:
    if isinstance(leaf, Text):
        return types.Leaf_Text(leaf.text)
    return types.Leaf_Secret(_secret(leaf))


def _secret(secret: Secret) -> types.SecretRef:
    return types.SecretRef(secret.key, types.Encoding[secret.encoding.name])


def _part(part: Part) -> Any:
    match part:
        case Text(text):
            return types.Part_Text(text)
        case Secret():
            return types.Part_Secret(_secret(part))
        case Encoded(leaves, encoding):
            return types.Part_Encoded(types.Encoded([*map(_leaf, leaves)], types.Encoding[encoding.name]))


def _template(template: Template) -> list[Any]:
    return [*map(_part, template.parts)]


def _place(place: Place | None) -> Any:
    if place is None:
        return None
    return http.Source_Header(place.value) if place.tag == "header" else http.Source_JsonPointer(place.value)


def _key(key: Key) -> types.KeySpec:
    match key.location:
        case Cookie(name, domain, path):
            location: Any = types.Location_Cookie(types.CookieLocation(name, domain, path))
        case _:
            location = types.Location_Token()
    return types.KeySpec(key.name, location, key.required, key.reveal, key.help)


def _manifest(manifest: Manifest) -> types.Manifest:
    return types.Manifest(
        service=manifest.service,
        title=manifest.title,
        version=manifest.version,
        validate_url=manifest.validate_url,
        keys=[*map(_key, manifest.keys)],
        origins=[*manifest.origins],
        settings=[
            types.SettingSpec(
                one.name,
                types.SettingKind[one.kind.name],
                one.required,
                one.default,
                [*one.choices],
                one.help,
            )
            for one in manifest.settings
        ],
        methods=[
            types.MethodSpec(
                one.name,
                types.CommitClass[one.commit_class.name],
                one.commit_class_setting,
                one.help,
            )
            for one in manifest.methods
        ],
        validate_interval=manifest.validate_every,
        max_age=manifest.max_age,
        extras=manifest.extras(),
    )
