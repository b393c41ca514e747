"""The layer for Python says what the SDK for Rust says: the cases of ../sdk.json, which
plugin-sdk/tests/languages.rs puts to the SDK itself. And what is Python's own."""

import json as standard_json
import re
import sys
import unittest
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parent))

from keywheel import (  # noqa: E402
    CommitClass,
    Key,
    Manifest,
    Method,
    Outcome,
    Provider,
    Setting,
    Stop,
    Template,
    Verdict,
    basic,
    bearer,
    date,
    encode,
    form,
    json,
    json_object,
    log,
    secret,
    text,
)
from keywheel.placeholders import Unfilled, fill  # noqa: E402
from keywheel.testing import Case, answer, fails, faults, get, post  # noqa: E402

CASES = standard_json.loads((Path(__file__).parent.parent / "sdk.json").read_text())
ME = get("https://shop.example/me")


class Shop(Provider):
    """A provider that does as told."""

    def __init__(self, told, **more):
        self.told = told
        self.more = more

    def describe(self):
        said = {
            "service": "shop",
            "title": "The shop",
            "version": "0.1.0",
            "origins": ["https://shop.example"],
            "validate_url": "https://shop.example/me",
            "keys": [Key.token("token")],
            "methods": [Method("renew", CommitClass.GRACE)],
        }
        return Manifest(**{**said, **self.more})

    def validate(self, cx):
        return self.told(cx)

    def rotate(self, cx, method):
        return self.told(cx)


def case(told, *script, **more):
    one = Case(Shop(told, **more)).key("token")
    for request, back in script:
        one.expect(request, back)
    return one


def raises(error):
    def told(cx):
        raise error

    return told


class Sdk(unittest.TestCase):
    def test_every_encoding_writes_what_its_standard_says(self):
        for name, plain, expected in CASES["encode"]:
            self.assertEqual(getattr(encode, name)(plain), expected, f"{name} of {plain}")

    def test_every_form_of_one_moment_is_the_same_and_what_is_no_date_is_none(self):
        for plain, expected in CASES["date"]:
            self.assertEqual(date.parse(plain), expected, plain)

    def test_settings_fill_placeholders_and_slashes_never_double(self):
        for pattern, expected in CASES["fill"]:
            try:
                said = fill(pattern, CASES["settings"].get)
            except Unfilled as error:
                said = f"error: {error}"
            self.assertEqual(said, expected)

    def test_durations_are_seconds_or_a_number_with_a_unit(self):
        for value, expected in CASES["seconds"]:
            one = case(lambda cx: Verdict.valid(next=cx.setting_seconds("every")), settings=[Setting.duration("every")])
            ran = one.setting("every", value).validate()
            if expected is None:
                self.assertIn("a duration is whole seconds", ran.failure, value)
            else:
                self.assertEqual(ran.why.next, expected, value)

    def test_what_taught_nothing_is_unknown_and_a_verdict_rests_on_an_answer(self):
        def told(cx):
            found = cx.get("{validate_url}").send()
            match found.status:
                case 200:
                    return Verdict.valid(identity=found.pick("/login"))
                case 401:
                    return Verdict.invalid("it is dead")
            raise found.unexpected()

        for one in CASES["answers"]:
            if "fails" in one:
                back = fails(one["fails"], one.get("what", "as scripted"))
            else:
                back = answer(one["status"], body=one.get("body", ""), headers=one.get("headers"))
            ran = case(told, (ME, back)).validate()
            said = getattr(ran.why, "message", None) or getattr(ran.why, "identity", None) or "nobody"
            # Each language has its own words for what is wrong with JSON.
            said = re.sub(r" \(.*\)$", "", f"{ran.tag}: {said}", flags=re.DOTALL)
            self.assertEqual(said, one["says"], one["about"])
            self.assertEqual(getattr(ran.why, "retry_after", None), one.get("retry_after"), one["about"])

    def test_a_template_shows_where_each_secret_goes_and_how(self):
        said = {
            "bearer": bearer("access_token"),
            "one secret": secret("a").form(),
            "one text": text("a b").form(),
            "computed": (text("id") + ":" + secret("key").form()).base64(),
            "computed secret": "1 " + secret("sid").sha1_hex(),
            "text and secret in a form": form({"both": "a" + secret("b")}),
            "twice": form({"twice": secret("b").base64()}),
            "an empty object": json_object({}),
            "an object": json_object([("user", 'a"b'), ("token", secret("token"))]),
            "a form": form({"grant_type": "a b", "refresh_token": secret("refresh_token")}),
            "basic": basic("robot", secret("api_key")),
        }
        for name, template in said.items():
            self.assertIsInstance(template, Template)
            self.assertEqual(str(template), CASES["templates"][name], name)

        def told(cx):
            cx.get("{validate_url}").query("a", "1").query("b", "x y").query("c", secret("token")).send()
            cx.get("{validate_url}").segment("a/b").segment(secret("token")).send()
            return Verdict.unknown("")

        wanted = (CASES["templates"]["a query"], CASES["templates"]["a segment"])
        case(told, *((get(url), answer(200)) for url in wanted)).validate()

    def test_a_computed_part_is_computed_once(self):
        with self.assertRaisesRegex(TypeError, "one level of that"):
            basic("a", secret("b")).base64()
        with self.assertRaisesRegex(TypeError, "a string is due"):
            text("a") + None

    def test_what_a_provider_raises_is_its_own_fault_said_with_its_place_and_never_a_verdict(self):
        ran = case(lambda cx: cx.nothing).validate()
        self.assertRegex(ran.failure, "^validate raised AttributeError: ")
        self.assertIn("test_sdk.py", ran.log[0][1])
        for error in (SystemExit(0), KeyboardInterrupt(), RecursionError("deep"), ValueError()):
            self.assertRegex(case(raises(error)).validate().failure, "^validate raised ")

    def test_what_is_no_verdict_is_no_answer(self):
        self.assertIn("returned None; a Verdict is due", case(lambda cx: None).validate().failure)
        self.assertIn("an Outcome is due", case(lambda cx: Verdict.valid()).rotate("renew").failure)

        class OnlyValidates(Shop):
            rotate = Provider.rotate

        ran = Case(OnlyValidates(lambda cx: Verdict.valid())).key("token").rotate("renew")
        self.assertIn("it only validates", ran.failure)

    def test_each_way_to_stop_is_the_verdict_and_the_outcome_of_its_name(self):
        stops = {
            "unknown": Stop.unknown("x", retry_after=5),
            "invalid": Stop.invalid("x"),
            "needs-human": Stop.needs_human("x"),
        }
        for tag, stop in stops.items():
            for ran in (case(raises(stop)).validate(), case(raises(stop)).rotate("renew")):
                self.assertEqual((ran.verdict, ran.why), (tag, stop.reason))
        self.assertEqual(case(raises(Stop.failed("mine"))).validate().failure, "mine")

    def test_a_rotation_captures_what_the_answer_has_and_the_provider_sees_that_it_changed_alone(self):
        renew = post("https://shop.example/renew", headers={"authorization": "Bearer {token}"})
        rule = json("/token").expires_in(json("/lives"))

        def told(cx):
            request = cx.post("https://shop.example/renew").header("authorization", bearer("token"))
            found = request.capture("token", rule).send()
            log.info(found.text)
            if found.changed("token"):
                self.assertEqual(found.captured("token").expires, 1_767_225_660_000)
            return found.outcome()

        fresh = answer(200, json={"token": "fresh-and-made-up", "lives": 60})
        ran = case(told, (renew, fresh)).rotate("renew")
        self.assertEqual((ran.verdict, ran.captured), ("rotated", {"token": "fresh-and-made-up"}))
        self.assertEqual(ran.log, [("info", '{"token": "[redacted]", "lives": 60}')])
        self.assertEqual(case(told, (renew, answer(200, json={}))).rotate("renew").verdict, "unchanged")

    def test_a_key_is_revealed_only_if_the_manifest_asks_and_the_operator_grants(self):
        def told(cx):
            return Verdict.valid(note=cx.reveal("seed").decode())

        provider = Shop(told, keys=[Key.token("seed", reveal=True)])
        self.assertEqual(Case(provider).key("seed", granted=True).validate().why.note, "old-seed")
        self.assertEqual(Case(provider).key("seed").validate().verdict, "needs-human")

    def test_the_script_refuses_what_the_host_would_also_where_the_provider_looks_away(self):
        def looks_away(cx):
            try:
                cx.get("https://shop.example/other").send()
            except AssertionError:
                pass
            return Verdict.unknown("")

        fine = (ME, answer(200))
        for one, said in (
            (case(looks_away), "doesn't expect"),
            (case(looks_away, fine), "but the provider made"),
            (case(lambda cx: Verdict.valid(), fine), "never made these requests"),
            (case(lambda cx: cx.get("{validate_url}").header("x", secret("other")).send()), "doesn't have"),
        ):
            with self.assertRaisesRegex(AssertionError, said):
                one.validate()
        elsewhere = case(lambda cx: cx.get("https://elsewhere.example/").send()).validate()
        self.assertIn("is at none of https://shop.example", elsewhere.failure)
        unbuilt = case(lambda cx: cx.get("{nope}").send()).validate()
        self.assertIn("which is no setting of this provider", unbuilt.failure)

    def test_a_manifest_that_the_host_would_refuse_is_told_with_each_fault(self):
        wrong = Shop(
            lambda cx: None,
            service="Shop!",
            origins=["http://shop.example"],
            validate_url="https://other.example/",
            validate_every=0,
            keys=[Key.token("a"), Key.token("a")],
            methods=[Method("renew", CommitClass.GRACE, commit_class_setting="nope")],
        )
        self.assertEqual(len(faults(wrong.describe())), 6)
        with self.assertRaisesRegex(AssertionError, "the host would refuse this manifest"):
            Case(wrong)
        self.assertEqual(faults(Shop(None).describe()), [])
        self.assertEqual(Outcome.rotated(expires=5).why.expires, 5)


if __name__ == "__main__":
    unittest.main()
