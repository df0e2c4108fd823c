"""What a run has uploaded, in a file of its directory: who goes on with the run uploads nothing of it again."""

import hashlib
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import orjson

from pipeline.providers.foreign import load, mapping

INLINE_BYTES = 15_000_000
"""Of the files of one request that are sent within it."""
BATCHED_BYTES = 1_000_000
"""The same of a line of a batch, whose file has 100 MB for all of its lines."""
MARGIN_S = 600.0
"""A file that ends sooner is uploaded again: the request that uses it may wait."""
BATCHED_S = 26 * 3600.0
"""The same of a file that a line names: longer no batch is waited for. Uploaded files end after 48 h."""


@dataclass(frozen=True, slots=True)
class Uploaded:
    """One file at the service."""

    account: str  # whose it is: `Target.account`
    content: str  # its digest and form
    name: str
    uri: str
    ends_at: float  # epoch seconds
    active: bool = False  # it was processed
    deleted: bool = False

    def lasts(self, least_s: float = MARGIN_S) -> bool:
        """Whether it will be there for so long."""
        return self.ends_at - least_s > time.time()


class UploadBook:
    """What is uploaded, in memory; once it is `open`, on the disk too.

    Its salt makes our names for files: by its name a file is found that was whole when its session was killed.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._known: dict[tuple[str, str], Uploaded] = {}
        self._times: Counter[tuple[str, str]] = Counter()
        self._salt = secrets.token_hex(8)
        self.continued = False

    def open(self, path: Path) -> None:
        """Read the book at `path`, and keep it there. A line that a kill cut short is none."""
        self._path = path
        for line in path.read_bytes().splitlines() if path.exists() else ():
            told = mapping(load(line))
            if isinstance(salt := told.get("salt"), str):
                self._salt, self.continued = salt, True
            elif told.keys() == Uploaded.__dataclass_fields__.keys():
                self._note(Uploaded(**told))

    def name_of(self, account: str, content: str) -> str:
        """The name of a content's next file; what makes it is kept before it is used."""
        if self._path is not None and not self._path.exists():
            self._write({"salt": self._salt})
        named = f"{self._salt}/{account}/{content}/{self._times[account, content]}"
        return f"files/pp-{hashlib.blake2b(named.encode(), digest_size=16).hexdigest()}"

    def get(self, account: str, content: str, least_s: float = MARGIN_S) -> Uploaded | None:
        """The file of a content, if it will be there for so long."""
        found = self._known.get((account, content))
        return found if found and found.lasts(least_s) else None

    def of(self, account: str) -> tuple[Uploaded, ...]:
        """All that an account has."""
        return tuple(each for (owner, _), each in self._known.items() if owner == account)

    def add(self, uploaded: Uploaded) -> None:
        """Keep what was uploaded."""
        self._note(uploaded)
        self._write(asdict(uploaded))

    def forget(self, account: str, content: str) -> None:
        """The service has it no more."""
        if (found := self._known.get((account, content))) is not None:
            self.add(replace(found, deleted=True))

    def _note(self, uploaded: Uploaded) -> None:
        place = uploaded.account, uploaded.content
        if uploaded.deleted:
            self._known.pop(place, None)
        else:
            self._known[place] = uploaded
            self._times[place] += uploaded.active

    def _write(self, told: Mapping[str, object]) -> None:
        if self._path is not None:
            with self._path.open("ab") as file:
                file.write(orjson.dumps(told) + b"\n")
