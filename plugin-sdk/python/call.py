"""One call of a provider, and what came of it. What it raises that is no `Stop` is the plugin's own
fault, with its place. Opens no file: a traceback as Python prints it would look for the source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Union

from . import log
from .verdict import Evidence, Outcome, Reason, Stop, Verdict


def run(
    name: str, due: type[Union[Verdict, Outcome]], call: Callable[[], object]
) -> tuple[str, Union[Evidence, Reason]]:
    """The tag of the contract's verdict or outcome with what supports it; `failed` is a failure."""
    try:
        said = call()
    except Stop as stop:
        return stop.kind, stop.reason
    except BaseException as error:  # SystemExit as well: nothing may leave without a word.
        what = f"{name} raised {type(error).__name__}: {error}"
        log.error(f"{what}\n{_trace(error)}")
        return "failed", Reason(what)
    if not isinstance(said, due):
        article = "a" if due is Verdict else "an"
        return "failed", Reason(f"{name} returned {said!r}; {article} {due.__name__} is due")
    return said.tag, said.why


def _trace(error: BaseException) -> str:
    lines = []
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        lines.append(f"  {code.co_filename}:{step.tb_lineno} in {code.co_name}")
        step = step.tb_next
    # The innermost say most.
    return "\n".join(lines[-20:])
