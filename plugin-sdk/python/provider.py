"""The one thing a plugin is: what a provider of one service must say and do."""

from .cx import Cx
from .manifest import Manifest
from .verdict import Outcome, Stop, Verdict


class Provider:
    """One service's knowledge; a plugin's module has one as `provider`.

    Every call runs in a fresh instance, so nothing may be kept between calls.
    """

    def describe(self) -> Manifest:
        """Says what the plugin is. Runs without the host API, without time and chance, and always
        answers the same."""
        raise NotImplementedError

    def validate(self, cx: Cx) -> Verdict:
        """Finds out whether the credential lives."""
        raise NotImplementedError

    def rotate(self, cx: Cx, method: str) -> Outcome:
        """Gets a fresh secret by one of the manifest's methods. A provider without methods keeps
        this one, and is never asked."""
        raise Stop.failed(f"this provider has no method `{method}`: it only validates")
