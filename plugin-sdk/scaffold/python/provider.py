"""Keeps API tokens of My service alive, wherever it is hosted."""

from keywheel import CommitClass, Cx, Key, Manifest, Method, Outcome, Provider, Setting, Verdict, bearer, json


class MyService(Provider):
    def describe(self) -> Manifest:
        return Manifest(
            service="my-service",
            title="My service",
            version="0.1.0",
            sources=["https://my-service.example/docs/api"],
            settings=[Setting.url("base_url", required=True, help="As in https://my-service.example")],
            origins=["{base_url.origin}"],
            validate_url="{base_url}/api/me",
            keys=[Key.token("token", help="An API token, from the page Settings, Tokens")],
            methods=[
                Method(
                    "renew",
                    CommitClass.BURN_ON_ISSUE,
                    help="Swap it for a fresh one",
                    source="https://my-service.example/docs/api#renew",
                )
            ],
        )

    def validate(self, cx: Cx) -> Verdict:
        answer = cx.get("{validate_url}").header("authorization", bearer("token")).send()
        match answer.status:
            case 200:
                return Verdict.valid(identity=answer.pick("/login"))
            case 401:
                return Verdict.invalid("/api/me answers 401: no such token, or no longer")
        raise answer.unexpected()

    def rotate(self, cx: Cx, method: str) -> Outcome:
        answer = (
            cx.post("{base_url}/api/token/renew")
            .header("authorization", bearer("token"))
            .capture("token", json("/token").expires_in(json("/expires_in")))
            .send()
        )
        match answer.status:
            case 200 if answer.changed("token"):
                return Outcome.rotated()
            case 401:
                return Outcome.invalid("the service doesn't renew this token: make a new one")
        raise answer.unexpected()


provider = MyService()
