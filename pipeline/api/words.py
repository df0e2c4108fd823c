"""What is said of flags and commands, as it is said in Python."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import PipelineError, as_known
from pipeline.job import GIVEN

_ARGUMENTS = {
    "by": "by=",
    "cancel-batches": "cancel_batches=True",
    "fresh": "fresh=True",
    "leave": "leave=True",
    "limit": "limit=",
    "max-cost": "max_cost_usd=",
    "offline": "offline=True",
    "on": 'on="ray"',
    "overwrite": "overwrite=True",
    "pilot": "pilot=",
    "retry": "retry=",
    "sample": "sample=",
    "set": "set=",
    "skip-failed": "skip_failed=True",
    "wait": "wait=True",
    "workers": "workers=",
    "yes": "yes=True",
}
_SETS = re.compile(r"--set ([a-z_]+)=([\w.]+)")
_KEPT = re.compile(re.escape(GIVEN) + r"[0-9a-f]{32}\.parquet")
_FLAG = re.compile(r"--([a-z][a-z-]*)(?: (?:USD|N|KINDS|TIME|ray)\b)?")


@contextmanager
def in_python() -> Iterator[None]:
    """Raise what a person can mend as the one error that it is, in the words of a call."""
    try:
        yield
    except Exception as error:
        if (known := as_known(error)) is None:
            raise
        for each in (known, *known.others):
            translated(each)
        if not hasattr(known, "__notes__"):  # below the message in a traceback, where nobody catches it
            for note in _notes(known):
                known.add_note(note)
        if known is error:
            raise
        raise known from error


def _notes(error: PipelineError) -> Iterator[str]:
    if error.hint:
        yield f"hint: {error.hint}"
    for other in error.others:
        yield f"and: {other.message}"
        if other.hint:
            yield f"hint: {other.hint}"


def translated(error: PipelineError) -> PipelineError:
    """The same error, of which flags are arguments."""
    error.message, error.hint = _said(error.message), _said(error.hint)
    error.args = (error.message,)
    return error


def _said(text: str) -> str:
    text = _SETS.sub(r'set={"\1": \2}', text)
    text = _FLAG.sub(lambda flag: _ARGUMENTS.get(flag[1]) or flag[0], text)
    return _KEPT.sub("the table", text).replace("the same command", "the same call")
