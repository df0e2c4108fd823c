"""What a shard has cost that no driver had heard of when it was gone: `untold.jsonl`, for the caps of day and month."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import NamedTuple

import orjson

NAME = "untold.jsonl"


class Untold(NamedTuple):
    """One life's, when its driver was gone."""

    usd: Decimal
    at: float  # epoch seconds


def note(directory: Path, usd: Decimal) -> None:
    """Add an amount; without effect where it is nothing, or the disk refuses it: the answers are kept all the same."""
    if not usd:
        return
    with suppress(OSError):
        place = os.open(directory / NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(place, orjson.dumps({"usd": str(usd), "at": time.time()}) + b"\n")
        finally:
            os.close(place)


def read(directory: Path) -> Iterator[Untold]:
    """All that was noted; a line that a crash cut is left out."""
    with suppress(OSError):
        for line in (directory / NAME).read_bytes().splitlines():
            with suppress(orjson.JSONDecodeError, KeyError, TypeError, ValueError, InvalidOperation):
                said = orjson.loads(line)
                yield Untold(Decimal(said["usd"]), float(said["at"]))
