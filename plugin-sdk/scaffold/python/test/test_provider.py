import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from keywheel.testing import Case, answer, get  # noqa: E402
from provider import provider  # noqa: E402

ME = get("https://my-service.example/api/me", headers={"authorization": "Bearer {token}"})


def account() -> Case:
    return Case(provider).setting("base_url", "https://my-service.example").key("token")


class MyService(unittest.TestCase):
    def test_a_living_token_is_valid_and_names_its_account(self):
        run = account().expect(ME, answer(200, json={"login": "ann"})).validate()
        self.assertEqual((run.verdict, run.why.identity), ("valid", "ann"))

    def test_a_firewall_page_says_nothing_of_the_token(self):
        run = account().expect(ME, answer(403, html="<h1>Blocked</h1>")).validate()
        self.assertEqual(run.verdict, "unknown")


if __name__ == "__main__":
    unittest.main()
