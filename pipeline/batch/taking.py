"""What the results of a batch say of its lines. Only the key is believed, and that only as far as it can be checked."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import median

from pipeline.providers.batches.base import Line
from pipeline.records import Failure, Reply
from pipeline.store.batch_lines import Key, without_body

REFUSED_SHARE, REFUSED_LEAST = 0.005, 3
"""When more of a batch's lines are not believed, and at least three, none of them is."""
OFF = math.log(1.15)
"""A prompt of which so much more or less is told than estimated is counted: where two answers are swapped whose prompts
differ by 30 %, one of them at least is off by 14 %."""
MOST_COUNTED = 500
"""Of the lines that are off, the farthest first: where estimates are poor, thousands may be."""
BY_LOT = 20
"""Of the others: where a fifth of a batch is scrambled, 99 of 100 draws find it."""
COUNT_MARGIN = 0.02
"""The service counts a prompt, and counts it again: the two differ by less (countTokens and `promptTokenCount`)."""
Read = Callable[[bytes, str, int], Line]
"""Reads one line of results: `providers.batches.base.Batches.read_line`."""


@dataclass(slots=True)
class Found:
    """What became of each line, by its key. `refused` are answers that were paid for and are not believed.

    Of answers beside the lines no more are kept than there are lines: nobody bills what was not asked.
    """

    replies: dict[str, Reply] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    refused: list[tuple[Key | None, Reply]] = field(default_factory=list)
    strangers: int = 0  # lines of no key of ours
    contradicted: set[str] = field(default_factory=set)  # keys of answers that are not believed

    @property
    def unbelieved(self) -> int:
        """Lines that are not believed."""
        return self.strangers + len(self.contradicted)

    def missing(self, keys: Iterable[Key]) -> list[Key]:
        """Those of which nothing is said."""
        told = self.replies.keys() | self.failures.keys() | self.contradicted
        return [key for key in keys if key.fingerprint not in told]

    def is_refused(self, lines: int) -> bool:
        """Whether none of it can be believed."""
        return self.unbelieved >= REFUSED_LEAST and self.unbelieved > REFUSED_SHARE * lines

    def refuse(self, key: Key) -> None:
        """Do not believe what is said of it."""
        self.contradicted.add(key.fingerprint)
        self.failures.pop(key.fingerprint, None)
        if (reply := self.replies.pop(key.fingerprint, None)) is not None:
            self.refused.append((key, reply))

    def refuse_all(self, keys: Mapping[str, Key]) -> None:
        """Believe nothing of it."""
        for fingerprint in (*self.replies, *self.failures):
            self.refuse(keys[fingerprint])


def found_in(lines: Iterable[bytes], keys: Mapping[str, Key], read: Read, model: str) -> Found:
    """Sort the lines of a file of results by their keys; equal answers to one key are one, others are none."""
    found = Found()
    for line in lines:
        told = read(line, model, 0)
        key = keys.get(told.key or "")
        if key is None:
            found.strangers += 1
            if told.reply and len(found.refused) < len(keys):
                found.refused.append((None, without_body(told.reply)))
            continue
        if told.reply and told.reply.usage.estimated:
            told = read(line, model, key.input_tokens_est)
        _take_in(found, key, told, len(keys))
    return found


def _take_in(found: Found, key: Key, told: Line, most: int) -> None:
    name = key.fingerprint
    before = found.replies.get(name)
    if told.reply is not None and name in found.contradicted:
        if len(found.refused) < most:
            found.refused.append((key, without_body(told.reply)))
    elif told.reply is not None and before is not None:
        if _says(before) != _says(told.reply):
            found.refuse(key)
            found.refused.append((key, without_body(told.reply)))
    elif told.reply is not None:
        found.failures.pop(name, None)
        found.replies[name] = without_body(told.reply)
    elif told.failure is not None and before is None and name not in found.contradicted:
        found.failures[name] = told.failure


def _says(reply: Reply) -> tuple[object, ...]:
    return reply.text, reply.status, reply.finish_reason, reply.usage.input_tokens


def to_count(keys: Mapping[str, Key], replies: Mapping[str, Reply], rng: Random) -> list[Key]:
    """The lines whose prompts are to be counted again: those whose tokens are not as estimated, and some by lot.

    Estimates are held against the middle one of their step: how far all of them are off says nothing.
    """
    ratios: dict[str, dict[str, float]] = {}
    for name, reply in replies.items():
        key, told = keys[name], reply.usage.input_tokens
        if told > 0 and not reply.usage.estimated:
            ratios.setdefault(key.step, {})[name] = told / max(1, key.input_tokens_est)
    off: dict[str, float] = {}
    for of_step in ratios.values():
        usual = median(of_step.values())
        off.update((name, abs(math.log(ratio / usual))) for name, ratio in of_step.items())
    far = sorted((name for name, by in off.items() if by > OFF), key=lambda name: -off[name])[:MOST_COUNTED]
    others = sorted(off.keys() - set(far))
    lot = rng.sample(others, min(BY_LOT, len(others)))
    return [keys[name] for name in (*far, *lot)]


def is_other(reply: Reply, counted: int) -> bool:
    """Whether an answer is to another prompt than the one with so many tokens."""
    return abs(reply.usage.input_tokens - counted) > 2 + COUNT_MARGIN * counted


def lines_of(path_lines: Iterable[bytes], wanted: Sequence[Key]) -> dict[str, bytes]:
    """The lines of a file of requests that ask these: each has its key in it, and no other's."""
    names = {key.fingerprint.encode(): key.fingerprint for key in wanted}
    found: dict[str, bytes] = {}
    for line in path_lines:
        start = line.find(b'"', line.find(b":") + 1) + 1
        if (name := names.get(line[start : line.find(b'"', start)])) is not None:
            found[name] = line
    return found
