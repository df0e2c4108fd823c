"""Failures on purpose: which request fails, and how.

A request's fate hangs on the seed, on its prompt and on how often that prompt was asked before, never on the order in
which requests arrive: the same job meets the same faults at any concurrency.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import orjson

from pipeline.emulator import bodies

_FREE_TEXT = "text/plain; charset=UTF-8"


@dataclass(frozen=True, slots=True)
class Fault:
    """A failure that is a complete response, in one or more wordings."""

    status: int
    variants: tuple[bytes, ...]
    content_type: str = bodies.JSON

    def body(self, luck: float) -> bytes:
        """The wording that a number in [0, 1) picks."""
        return self.variants[int(luck * len(self.variants))]


def _json(*errors: Any) -> tuple[bytes, ...]:
    return tuple(orjson.dumps(error) for error in errors)


_NESTED = orjson.dumps(bodies.error(503, bodies.OVERLOADED)).decode()

RESPONSES: Mapping[str, Fault] = {
    "400": Fault(400, _json(bodies.error(400, "Request contains an invalid argument."))),
    "403": Fault(403, _json(bodies.error(403, bodies.LEAKED))),
    "408": Fault(408, (b"Request Timeout",), _FREE_TEXT),
    "413": Fault(413, (bodies.html_page(413, "Request Entity Too Large"),), bodies.HTML),
    "429": Fault(429, _json(bodies.error(429, bodies.EXHAUSTED))),
    "499": Fault(499, _json(bodies.error(499, bodies.CANCELLED))),
    "500": Fault(500, _json(bodies.error(500, bodies.INTERNAL))),
    "503": Fault(503, _json(bodies.error(503, bodies.OVERLOADED), bodies.error(503, bodies.HIGH_DEMAND))),
    "504": Fault(504, _json(bodies.error(504, bodies.DEADLINE))),
    "html502": Fault(502, (bodies.html_page(502, "Server Error"),), bodies.HTML),
    "array429": Fault(429, _json([bodies.error(429, bodies.EXHAUSTED)])),
    "bare429": Fault(429, _json(bodies.error(429, bodies.QUOTA_EXCEEDED, [bodies.help_link()]))),
    "prepaid": Fault(429, _json(bodies.error(429, bodies.PREPAID))),
    "location": Fault(400, _json(bodies.error(400, bodies.LOCATION, status="FAILED_PRECONDITION"))),
    "nested503": Fault(503, _json({"error": {"code": 503, "message": _NESTED, "status": "Service Unavailable"}})),
    "garbage": Fault(200, (b"<html>upstream connect error", b"OK", b'{"candidates": [{"content"', b"")),
}
"""Faults that replace the response; `408` and `413` are those of a proxy, `403` is the leaked key."""

ANSWERS = frozenset({"block", "empty", "safety", "recitation", "max_tokens_empty", "nousage"})
"""Faults inside a 200 that is billed: blocked prompt, answer without text, withheld, cut short, no usage counters."""

BROKEN = frozenset({"reset", "truncated", "hang"})
"""Faults of the connection: reset before the first byte, body cut in half, no answer until the client gives up."""

KINDS = frozenset(RESPONSES) | ANSWERS | BROKEN


@dataclass(frozen=True, slots=True)
class Faults:
    """First `first` requests fail in turn, the others with a probability each."""

    rates: tuple[tuple[str, float], ...] = ()
    first: tuple[tuple[str, int], ...] = ()

    def pick(self, luck: float, ordinal: int) -> str | None:
        """The fault of a request: `luck` in [0, 1), `ordinal` from 0 over all requests; None: it goes well."""
        for kind, times in self.first:
            if ordinal < times:
                return kind
            ordinal -= times
        for kind, rate in self.rates:
            if luck < rate:
                return kind
            luck -= rate
        return None


NO_FAULTS = Faults()


def parse_faults(spec: str) -> Faults:
    """Read `503:0.05,500*2,reset:0.01`: `kind:rate`, `kind*N` for the first N requests, or `kind` for all of them.

    Raises ValueError, in words for the person who wrote it.
    """
    rates: list[tuple[str, float]] = []
    first: list[tuple[str, int]] = []
    for item in filter(None, (part.strip() for part in spec.split(","))):
        kind, mark, amount = item.partition("*" if "*" in item else ":")
        if kind.strip() not in KINDS:
            raise ValueError(f"unknown fault {kind.strip()!r}; there are {', '.join(sorted(KINDS))}")
        if mark == "*":
            first.append((kind.strip(), _times(item, amount)))
        else:
            rates.append((kind.strip(), _rate(item, amount) if mark else 1.0))
    total = sum(rate for _, rate in rates)
    if total > 1 + 1e-9:
        raise ValueError(f"the rates in {spec!r} add up to {total:g}; at most 1 of the requests can fail")
    return Faults(tuple(rates), tuple(first))


def luck(seed: int, purpose: str, prompt: int, attempt: int) -> float:
    """A number in [0, 1) that hangs on nothing else."""
    key = f"{seed}/{purpose}/{prompt}/{attempt}".encode()
    return int.from_bytes(blake2b(key, digest_size=6).digest(), "big") / 2**48


def _times(item: str, amount: str) -> int:
    if not amount.strip().isdecimal() or int(amount) < 1:
        raise ValueError(f"{item!r}: after `*` stands how many of the first requests fail, such as 503*3")
    return int(amount)


def _rate(item: str, amount: str) -> float:
    try:
        rate = float(amount)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:
        raise ValueError(f"{item!r}: after `:` stands a rate from 0 to 1, such as 503:0.05")
    return rate
