"""Lines in the host's log, attributed to the plugin. Secrets are redacted there."""

from .host import emit


def debug(message: str) -> None:
    emit("debug", message)


def info(message: str) -> None:
    emit("info", message)


def warn(message: str) -> None:
    emit("warn", message)


def error(message: str) -> None:
    emit("error", message)
