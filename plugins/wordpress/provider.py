"""WordPress application passwords: seen alive by the account's own record, replaced by a second one
that the first asks for. What an interrupted rotation left behind is known by its name."""

from keywheel import (
    CommitClass,
    Cx,
    Key,
    Manifest,
    Method,
    Outcome,
    Provider,
    Request,
    Response,
    Setting,
    Stop,
    Verdict,
    basic,
    json,
    log,
    secret,
    text,
)

REFERENCE = "https://developer.wordpress.org/rest-api/reference/application-passwords/"
GUIDE = "https://make.wordpress.org/core/2020/11/05/application-passwords-integration-guide/"

ME = "{base_url}/wp-json/wp/v2/users/me"
PASSWORDS = ME + "/application-passwords"

# What WordPress itself says of a login that it looked at and refused.
DEAD = ("incorrect_password", "invalid_username", "invalid_email")
# More than ever pile up, and far below what one call may ask.
SWEPT = 8


class WordPress(Provider):
    def describe(self) -> Manifest:
        return Manifest(
            service="wordpress",
            title="WordPress application password",
            version="0.1.0",
            settings=[
                Setting.url("base_url", required=True, help="The site, such as https://blog.example"),
                Setting.text("user", required=True, help="The login name that the password belongs to"),
            ],
            origins=["{base_url.origin}"],
            validate_url=ME,
            keys=[
                Key.token("app_password", help='From Users, Profile, "Add New Application Password"; spaces may stay')
            ],
            methods=[
                Method(
                    "replace",
                    CommitClass.ADDITIVE,
                    help="Makes a new application password; the one before stays until the next rotation",
                    source=REFERENCE,
                )
            ],
            sources=[REFERENCE, GUIDE],
        )

    def validate(self, cx: Cx) -> Verdict:
        answer = as_user(cx, cx.get("{validate_url}")).send()
        if answer.status == 200 and (identity := answer.pick("/id")):
            return Verdict.valid(identity=identity)
        raise refusal(answer)

    def rotate(self, cx: Cx, method: str) -> Outcome:
        name = f"Keywheel {cx.context.credential_id}"
        sweep(cx, name)
        answer = (
            as_user(cx, cx.post(PASSWORDS))
            .form({"name": text(name)})
            .capture("app_password", json("/password"))
            .send()
        )
        if answer.status == 201 and answer.changed("app_password"):
            return Outcome.rotated()
        raise refusal(answer)


def as_user(cx: Cx, request: Request) -> Request:
    return request.header("authorization", basic(cx.setting("user"), secret("app_password"))).header(
        "accept", "application/json"
    )


def sweep(cx: Cx, name: str) -> None:
    """Deletes what earlier rotations of this credential left, all but the password in use."""
    mine = as_user(cx, cx.get(PASSWORDS + "/introspect")).send()
    if mine.status != 200 or not (in_use := mine.pick("/uuid")):
        raise refusal(mine)
    listed = as_user(cx, cx.get(PASSWORDS)).send()
    passwords = listed.json() if listed.status == 200 else None
    if not isinstance(passwords, list):
        raise refusal(listed)
    left = [
        password["uuid"]
        for password in passwords
        if isinstance(password, dict)
        and password.get("name") == name
        and isinstance(password.get("uuid"), str)
        and password["uuid"] != in_use
    ]
    for uuid in left[:SWEPT]:
        gone = as_user(cx, cx.request("DELETE", PASSWORDS).segment(uuid)).send()
        if not gone.is_success:
            log.warn(f"an application password of an earlier rotation stays: {gone.status} for {uuid}")


def refusal(answer: Response) -> Stop:
    """What an answer says that is no success."""
    if answer.status in (401, 403, 501):
        code = answer.pick("/code")
        if code in DEAD:
            return Stop.invalid(f"the site refuses the application password: {code}")
        if code == "rest_not_logged_in":
            return Stop.needs_human(
                "the site didn't look at the login: it must be reached by https, "
                "and its web server must pass the Authorization header on"
            )
        if code in ("application_passwords_disabled", "application_passwords_disabled_for_user"):
            return Stop.needs_human("application passwords are switched off at this site or for this account")
        if code == "rest_cannot_create_application_passwords":
            return Stop.needs_human("this account may not make application passwords")
    return answer.unexpected()


provider = WordPress()
