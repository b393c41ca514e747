"""What the fixtures can't say. They are run by `keywheel plugin test`, in the real sandbox."""

import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from keywheel.testing import Case, answer, get, post, request  # noqa: E402
from provider import provider  # noqa: E402

LOGIN = {"authorization": "Basic {ann:{app_password}|base64}"}
ME = "https://blog.example/site/wp-json/wp/v2/users/me"
PASSWORDS = ME + "/application-passwords"


def account() -> Case:
    return (
        Case(provider)
        .setting("base_url", "https://blog.example/site/")
        .setting("user", "ann")
        .key("app_password")
    )


class WordPress(unittest.TestCase):
    def test_a_site_in_a_folder_is_asked_there(self):
        run = account().expect(get(ME, headers=LOGIN), answer(200, json={"id": 7})).validate()
        self.assertEqual((run.verdict, run.why.identity), ("valid", "7"))

    def test_a_rotation_sweeps_no_password_but_its_own_leftovers(self):
        listed = [
            {"uuid": "in-use", "name": "Keywheel test"},
            {"uuid": "left", "name": "Keywheel test"},
            {"uuid": "phone", "name": "Phone"},
            {"uuid": "other", "name": "Keywheel other"},
        ]
        run = (
            account()
            .expect(get(PASSWORDS + "/introspect", headers=LOGIN), answer(200, json={"uuid": "in-use"}))
            .expect(get(PASSWORDS, headers=LOGIN), answer(200, json=listed))
            .expect(request("DELETE", PASSWORDS + "/left", headers=LOGIN), answer(200, json={"deleted": True}))
            .expect(
                post(PASSWORDS, headers=LOGIN, body="name=Keywheel+test"),
                answer(201, json={"uuid": "new", "password": "made up"}),
            )
            .rotate("replace")
        )
        self.assertEqual((run.verdict, run.captured), ("rotated", {"app_password": "made up"}))


if __name__ == "__main__":
    unittest.main()
