"""The results of a batch: one line for each of its lines, and what faults make of them."""

from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Any

import anyio
import anyio.lowlevel
import orjson

from pipeline.emulator.batch_faults import Draw
from pipeline.emulator.kept import Kept
from pipeline.emulator.messages import Refusal

Body = dict[str, Any]

_TOGETHER = 50  # lines that are made before other requests have their turn
_OTHER_TEXT = " Or not."


@dataclass(frozen=True, slots=True)
class Result:
    """What stands in one line of results: who it is for, and an answer, an error or neither."""

    name: Body  # the fields that say which line was asked
    answer: Body | None = None
    error: Body | None = None


@dataclass(slots=True)
class Making:
    """The results of a batch as far as they are made: it goes on where it was left.

    `answer` bills and answers a line, or raises `Refusal`; the second argument says that nobody will see the answer.
    `name` reads who a line is for, `error` tells of a refusal or of a gRPC code, `stranger` makes
    such a name of nobody, `written` makes a line of results.
    """

    number: int
    lines: Iterator[bytes]
    count: int  # lines that are answered; those behind are not
    draw: Draw
    name: Callable[[bytes], Body]
    answer: Callable[[bytes, bool], Body]
    error: Callable[[int | Refusal], Body]
    stranger: Callable[[Body, int], Body]
    written: Callable[[Result], Body]
    lost: bool = False  # all of it
    results: Kept = field(default_factory=Kept)
    errors: Kept = field(default_factory=Kept)  # where they stand apart
    errors_apart: bool = False
    succeeded: int = 0
    failed: int = 0
    _made: int = 0
    _swapped: Result | None = None
    _places: "array[int]" = field(default_factory=lambda: array("q"))
    _turn: anyio.Lock = field(default_factory=anyio.Lock)

    async def go_on(self, most: int | None = None) -> int:
        """Make up to `most` more lines; returns how many."""
        async with self._turn:
            before = self._made
            while self._made < self.count and (most is None or self._made - before < most):
                self._make(next(self.lines))
                if self._made % _TOGETHER == 0:
                    await anyio.lowlevel.checkpoint()
            if self._made >= self.count and self._swapped is not None:
                self._put(self._swapped)
                self._swapped = None
            return self._made - before

    @property
    def is_done(self) -> bool:
        """Whether they are all there."""
        return self._made >= self.count and self._swapped is None

    def shuffle(self, seed: int) -> None:
        """Put the lines of results into another order, the same every time."""
        places = [*self._places, self.results.size]
        spans = list(pairwise(places))
        Random(seed).shuffle(spans)
        shuffled = Kept()
        for start, stop in spans:
            shuffled.append(self.results.part(start, stop))
        self.results = shuffled

    def _make(self, line: bytes) -> None:
        place = self._made
        self._made += 1
        name = self.name(line)
        code = self._hit("line_error", place)
        if code is not None:
            self.failed += 1
            self._put(Result(name, error=self.error(code)))
            return
        is_missing, is_empty = self._hit("line_missing", place) is not None, self._hit("line_empty", place) is not None
        try:
            answer = self.answer(line, self.lost or is_missing or is_empty)
        except Refusal as refusal:
            self.failed += 1
            self._put(Result(name, error=self.error(refusal)))
            return
        self.succeeded += 1
        if is_missing:
            return
        result = Result(name, answer=None if is_empty else answer)
        if self._hit("line_stranger", place) is not None:
            result = Result(self.stranger(name, place), result.answer)
        if result.answer is not None and self._hit("line_swapped", place) is not None:
            self._swap(result)
            return
        self._put(result)
        if self._hit("line_doubled", place) is not None:
            self._put(result)
        if result.answer is not None and self._hit("line_differs", place) is not None:
            self._put(Result(result.name, _with_other_text(result.answer)))

    def _hit(self, kind: str, place: int) -> int | None:
        return self.draw.hit(kind, self.number, place)

    def _swap(self, result: Result) -> None:
        """Of two that meet each has the other's answer; the first waits for the second."""
        if self._swapped is None:
            self._swapped = result
            return
        first, self._swapped = self._swapped, None
        self._put(Result(first.name, result.answer))
        self._put(Result(result.name, first.answer))

    def _put(self, result: Result) -> None:
        line = orjson.dumps(self.written(result)) + b"\n"
        if result.error is not None and self.errors_apart:
            self.errors.append(line)
            return
        self._places.append(self.results.size)
        self.results.append(line)


def _with_other_text(body: Mapping[str, Any]) -> Body:
    """The same answer in other words."""
    changed: Body = orjson.loads(orjson.dumps(body))
    parts = [part for candidate in changed.get("candidates", ()) for part in candidate["content"].get("parts", ())]
    for part in parts:
        if "text" in part:
            part["text"] += _OTHER_TEXT
    for choice in changed.get("choices", ()):
        choice["message"]["content"] = (choice["message"]["content"] or "") + _OTHER_TEXT
    return changed
