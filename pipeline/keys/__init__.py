"""Where a key comes from: it is read where it is needed, and kept in no setting, file or message.

env:NAME                                      the environment; where it is not there, a `.env` file
keyring:SERVICE/NAME                          the user's keyring (extra `keyring`)
gcp-secret:projects/P/secrets/S[/versions/V]  Google Secret Manager (extra `gcp`)
"""

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from pipeline.errors import JobError
from pipeline.keys import dotenv, stores

Kind = Literal["env", "keyring", "gcp-secret"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a key is to be found. `names`: variables, the first that is set counts; or the one name of a secret.

    `beside` is the job's directory: a `.env` file is looked for there, then in the working directory. `usual` are the
    variables of a key for that service: what another one holds is nothing to send there.
    """

    kind: Kind
    names: tuple[str, ...]
    beside: Path
    usual: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " or ".join(self.names) if self.kind == "env" else f"{self.kind}:{self.names[0]}"


@dataclass(frozen=True, slots=True)
class Key:
    """A key, and where it was found; `file` where that is a `.env` file. `passed_over`: variables with another one."""

    value: str = field(repr=False)
    where: str
    file: Path | None = None
    passed_over: tuple[str, ...] = ()

    @property
    def warnings(self) -> list[str]:
        """What lets others read it there; asks the disk and git."""
        return dotenv.exposed(self.file) if self.file else []


def origin_of(key: str | None, variables: Sequence[str], beside: Path, usual: Sequence[str] = ()) -> Origin:
    """Where `[endpoint] key` says that the key is; where it says nothing, in the first of the `variables` that is set.

    Its form was checked when the job was read.
    """
    kind, _, name = (key or "").partition(":")
    if kind in ("keyring", "gcp-secret"):
        return Origin(cast(Kind, kind), (name,), beside)
    return Origin("env", (name,) if name else tuple(variables), beside, tuple(usual))


def read(origin: Origin, *, again: bool = False) -> Key:
    """The key from where it is now; `again`: a store that was asked before is asked once more.

    Raises `JobError` where there is none, or what is needed to read it is missing.
    """
    if origin.kind == "env":
        return _variable(origin)
    ask = stores.from_keyring if origin.kind == "keyring" else stores.from_secret_manager
    if again:
        ask.cache_clear()
    value = ask(origin.names[0]).strip()
    if not value:
        raise JobError(f"no API key: what {origin} holds is blank", "put the key there")
    return Key(value, str(origin))


def _variable(origin: Origin) -> Key:
    notes = []
    for name in origin.names:
        value = os.environ.get(name, "")
        if value.strip():
            others = (other for other in origin.names if os.environ.get(other, "").strip() not in ("", value.strip()))
            return Key(value.strip(), name, passed_over=tuple(others))
        if value:
            notes.append(f"{name} is set to white space")
    for path in dotenv.files(origin.beside):
        for name in origin.names:
            looked = dotenv.read_file(path, name)
            if looked.value:
                return Key(looked.value, f"{name} in {path}", path)
            if looked.note and looked.note not in notes:
                notes.append(looked.note)
    raise _missing(origin, notes)


def _missing(origin: Origin, notes: Sequence[str]) -> JobError:
    """No key anywhere: every variable looked at, what else was seen, and what is set in its stead."""
    names = origin.names
    unset = " and ".join(names) + (" are both unset" if len(names) == 2 else " is unset")
    seen = "".join(f"\n{note}" for note in notes)
    others = [name for name, value in os.environ.items() if value.strip() and _is_like(name, origin)]
    hint = f"`export {names[0]}=…`, or try without one: `--offline`"
    if others:
        hint = f'{others[0]} is set: `[endpoint] key_env = "{others[0]}"` reads it; or {hint}'
    return JobError(f"no API key: {unset}{seen}", hint)


def _is_like(name: str, wanted: Origin) -> bool:
    """Whether a variable may be the one that was meant: the service's usual one, or a slip of the pen."""
    if name in wanted.names or "KEY" not in name.upper():
        return False
    return name in wanted.usual or bool(difflib.get_close_matches(name.upper(), wanted.names, n=1, cutoff=0.8))
