"""Failures of batches on purpose: which batch, line, request or file of theirs fails, and how.

Each kind is drawn apart from the others, so that any of them meet in one batch. By a rate, what becomes of a batch or a
line depends on the seed, the number of the batch and the place of the line, never on the order of polls.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipeline.emulator.faults import luck, rate_of, times_of


@dataclass(frozen=True, slots=True)
class BatchFault:
    """One kind of failure: what happens, for a person; `value`: what a number after `=` says, and is else."""

    says: str
    value: str = ""
    usual: int = 0


BATCH_GROUPS: Mapping[str, Mapping[str, BatchFault]] = {
    "creating a batch": {
        "create_429": BatchFault(
            "429: more is enqueued than may be, without a delay; of chat completions it is made, and fails"
        ),
        "create_cut": BatchFault("the batch is made, and the connection broken before the answer"),
        "create_late": BatchFault("connection broken; the batch is made so much later", "seconds", 30),
    },
    "asking for batches": {
        "call_503": BatchFault("overloaded, and nothing is done"),
        "list_lag": BatchFault("a batch that is listed only so much later", "seconds", 30),
    },
    "what becomes of a batch": {
        "batch_failed": BatchFault("FAILED at its end"),
        "batch_expired": BatchFault("EXPIRED after 48 hours; of chat completions after 24, with half of the answers"),
        "batch_stuck": BatchFault("PENDING for ever"),
        "cancel_ignored": BatchFault("cancelled, it goes on to its end"),
        "cancel_billed": BatchFault("cancelled, what was answered so far is billed and not handed out"),
        "cancel_counted": BatchFault("cancelled, its tokens still count as enqueued"),
        "input_needed": BatchFault("FAILED once its file is deleted while it is PENDING"),
    },
    "what a batch hands out": {
        "inline_output": BatchFault("the results of a file inline, in place of a file; not of chat completions"),
        "output_late": BatchFault("SUCCEEDED, and its results are named so much later", "seconds", 30),
        "count_short": BatchFault("a last tenth of the lines is not read: not counted, not answered"),
        "lines_shuffled": BatchFault("the lines in another order"),
    },
    "lines of results": {
        "line_error": BatchFault("an error in place of the answer; not billed", "its gRPC code", 13),
        "line_missing": BatchFault("no line; billed"),
        "line_empty": BatchFault("a line with neither answer nor error; billed"),
        "line_doubled": BatchFault("the line twice"),
        "line_differs": BatchFault("two lines of one key, with different answers"),
        "line_stranger": BatchFault("a key that nobody gave"),
        "line_swapped": BatchFault("the answer of another line, which has this one's"),
    },
    "files of batches": {
        "upload_cut": BatchFault("connection broken when half of the part was taken"),
        "upload_lost": BatchFault("the file is stored, and the connection broken before the answer"),
        "download_cut": BatchFault("connection broken in the middle of the results"),
        "download_short": BatchFault("half of the results, as if that were all"),
    },
}
"""Every fault of batches by its name; a line that is answered is billed, whatever becomes of its answer."""

BATCH_KINDS: Mapping[str, BatchFault] = {
    name: fault for group in BATCH_GROUPS.values() for name, fault in group.items()
}
OF_BATCHES = (*BATCH_GROUPS["what becomes of a batch"], *BATCH_GROUPS["what a batch hands out"], "list_lag")
"""Those that a batch is born with."""

_ERROR_CODES = range(1, 17)
_LONGEST_S = 10**6


@dataclass(frozen=True, slots=True)
class Chance:
    """One kind of fault: how likely, or for how many of the first; its number, where it has one."""

    kind: str
    rate: float = 1.0
    times: int | None = None
    value: int = 0


def told_of_batches() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Each group with its faults: name, and what happens."""
    longest = max(len(_spelt(name)) for name in BATCH_KINDS)
    for group, kinds in BATCH_GROUPS.items():
        yield group, [(_spelt(name).ljust(longest), fault.says) for name, fault in kinds.items()]


def _spelt(name: str) -> str:
    fault = BATCH_KINDS[name]
    return f"{name}={fault.usual}" if fault.value else name


def parse_batch_faults(spec: str) -> tuple[Chance, ...]:
    """Read `create_cut*1,line_error=8:0.05,batch_stuck`: `kind:rate`, `kind*N` for the first N, `kind` for all.

    After `=` stands a kind's number. Raises ValueError, in words for the person who wrote it.
    """
    chances = []
    for item in filter(None, (part.strip() for part in spec.split(","))):
        named, mark, amount = item.partition("*" if "*" in item else ":")
        kind, equals, number = (part.strip() for part in named.partition("="))
        if kind not in BATCH_KINDS:
            raise ValueError(f"unknown fault {kind!r}; there are {', '.join(sorted(BATCH_KINDS))}")
        value = _number(item, kind, number) if equals else BATCH_KINDS[kind].usual
        if mark == "*":
            chances.append(Chance(kind, times=times_of(item, amount), value=value))
        else:
            chances.append(Chance(kind, rate=rate_of(item, amount) if mark else 1.0, value=value))
    return tuple(chances)


def _number(item: str, kind: str, number: str) -> int:
    fault = BATCH_KINDS[kind]
    allowed = _ERROR_CODES if kind == "line_error" else range(1, _LONGEST_S)
    if not fault.value:
        raise ValueError(f"{item!r}: {kind} takes no number")
    if not number.isdecimal() or int(number) not in allowed:
        raise ValueError(f"{item!r}: after `=` stands {fault.value}, such as {kind}={fault.usual}")
    return int(number)


class Draw:
    """Says of each batch, line, request and file whether a kind of fault meets it; counts those that did."""

    def __init__(self, seed: int, chances: tuple[Chance, ...]) -> None:
        self._seed = seed
        self._chances: dict[str, list[Chance]] = {}
        for chance in chances:
            self._chances.setdefault(chance.kind, []).append(chance)
        self._drawn = Counter[str]()
        self.hits = Counter[str]()

    def hit(self, kind: str, number: int | None = None, place: int = 0) -> int | None:
        """The number of the fault where it meets line `place` of batch `number`; None: it goes well.

        Without `number` it is the next request or file of that kind.
        """
        chances = self._chances.get(kind)
        if chances is None:
            return None
        ordinal = self._drawn[kind]
        self._drawn[kind] += 1
        for chance in chances:
            if chance.times is None:
                at = (ordinal, 0) if number is None else (number, place)
                met = luck(self._seed, kind, *at) < chance.rate
            else:
                met = ordinal < chance.times
            if met:
                self.hits[kind] += 1
                return chance.value
        return None
