"""What a service says of a batch or of a line, without what it repeats of the prompts: a person and a log read it."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import orjson

from pipeline.providers.failures import without_prompt
from pipeline.providers.foreign import load
from pipeline.records import Failure

_BLOCK = 20
"""Characters: of what is repeated, twice as many in a row have one of the message's blocks in them, wherever it is."""
_TEXTS = frozenset({"text", "content"})


def without_prompts(message: str, requests: Path) -> str:
    """A message without what it repeats of any line in a file of requests; as it is where that cannot be read."""
    try:
        with requests.open("rb") as lines:
            for line in lines:
                if any(block in line for block in _blocks(message)):
                    message = without_prompt(message, *_texts(load(line)))
    except OSError:
        return message
    return message


def each_without_prompt(failures: Mapping[str, Failure], lines: Mapping[str, bytes]) -> dict[str, Failure]:
    """The failures by their keys, each without what it repeats of its own line of requests."""
    found = dict(failures)
    for key in failures.keys() & lines.keys():
        message = without_prompt(failures[key].message, *_texts(load(lines[key])))
        found[key] = replace(failures[key], message=message)
    return found


def _blocks(message: str) -> list[bytes]:
    """Of a message, every so many characters, as JSON has them."""
    starts = range(0, len(message) - _BLOCK + 1, _BLOCK)
    return [orjson.dumps(message[at : at + _BLOCK])[1:-1] for at in starts]


def _texts(value: object) -> Iterator[str]:
    """The texts of a request."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if isinstance(inner, str) and name in _TEXTS:
                yield inner
            else:
                yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
