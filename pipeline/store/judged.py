"""Which answer of a row was judged: known again by its hash, since a run may have millions. Pure."""

from typing import NamedTuple

_OPENING = {"{": "}", "[": "]"}


class Judged(NamedTuple):
    """The response of a row that was judged, hashed, and of JSON how long it is."""

    hash: int
    length: int | None


def judged_of(response: str | None) -> Judged:
    """What a response is known by."""
    return Judged(hash(response), len(response) if response and response[0] in _OPENING else None)


def gave_judged(text: str, judged: Judged) -> bool:
    """Whether a call with this text gave that response; of JSON what stood around it was left off."""
    if judged.length is None:
        return hash(text) == judged.hash
    return any(
        hash(text[at : at + judged.length]) == judged.hash
        for at in range(len(text) - judged.length + 1)
        if (closing := _OPENING.get(text[at])) is not None and text[at + judged.length - 1] == closing
    )
