"""Failures on purpose: which request fails, and how.

A request's fate depends on the seed, its prompt and how often that prompt was asked before, never on the order in
which requests arrive: the same job meets the same faults at any concurrency.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

Bill = Literal["no", "yes", "unread", "lost"]
"""What the server bills: nothing; an answer that can be read; one whose response cannot; one that never came whole."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of failure: what is sent, for a person, and what the server bills for it."""

    says: str
    bill: Bill = "no"


GROUPS: Mapping[str, Mapping[str, Fault]] = {
    "refused or failed": {
        "400": Fault("invalid argument"),
        "402": Fault("payment required"),
        "403": Fault("leaked key"),
        "408": Fault("a proxy's timeout"),
        "413": Fault("a proxy's page: too large"),
        "429": Fault("exhausted, without details"),
        "499": Fault("cancelled"),
        "500": Fault("internal error"),
        "503": Fault("overloaded, in two wordings"),
        "504": Fault("deadline expired"),
        "html502": Fault("a front end's page"),
        "array429": Fault("a 429 in an array"),
        "bare429": Fault("a 429 that names no quota"),
        "nested503": Fault("a 503 as a string in `message`"),
        "location": Fault("region not supported"),
        "garbage": Fault("200 with a page, `OK`, cut JSON or nothing, from a gateway"),
    },
    "money gone": {
        "prepaid": Fault("429: prepayment credits are depleted"),
        "balance400": Fault("400: credit balance is too low"),
        "balance429": Fault("429: 余额不足"),
        "balance200": Fault("余额不足 in a 200"),
        "no_quota429": Fault("429: insufficient_quota, as OpenAI says of money"),
        "no_channel": Fault("503: 无可用渠道"),
    },
    "refused by relays": {
        "busy429": Fault("429: 负载已饱和, with the code of money"),
        "quota500": Fault("a quota's text in a 500"),
        "quota502": Fault("a 429 in an array, as a 502"),
        "filter400": Fault("400: content_filter"),
        "expired401": Fault("401: 该令牌已过期"),
    },
    "long waits": {
        "wait_day": Fault("503 with Retry-After: 86400"),
        "wait_2099": Fault("503 with a Retry-After date in 2099"),
        "wait_2h": Fault("503 with RetryInfo 7200s"),
        "late_day": Fault("a day refusal that is held past midnight Pacific, if that is near"),
    },
    "answers without an answer": {
        "block": Fault("blocked prompt", "yes"),
        "empty": Fault("no text", "yes"),
        "safety": Fault("withheld for safety", "yes"),
        "recitation": Fault("cut for recitation", "yes"),
        "max_tokens_empty": Fault("the limit reached before any text", "yes"),
    },
    "packs": {
        "pack_shuffled": Fault("the answers to a pack, last first", "yes"),
        "pack_missing": Fault("every other answer of a pack", "yes"),
        "pack_doubled": Fault("two answers to the first row of a pack", "yes"),
        "pack_wrong_key": Fault("an answer under a key that nobody gave", "yes"),
        "pack_cut": Fault("the limit reached in the middle of a pack", "yes"),
        "pack_text": Fault("prose in place of a pack's JSON", "yes"),
    },
    "JSON that is not as it was asked for": {
        "fenced_json": Fault("in a code fence", "yes"),
        "prose_json": Fault("with a sentence before and behind", "yes"),
        "broken_json": Fault("its last bracket missing, where nobody answered before in the prompt", "yes"),
        "wrong_json": Fault("a list in place of an object, where nobody answered before in the prompt", "yes"),
    },
    "odd counts": {
        "nousage": Fault("no usage at all", "yes"),
        "zero_counts": Fault("counts of zero", "yes"),
        "hidden_thinking": Fault("thinking that only the total tells of", "yes"),
        "no_prompt_count": Fault("usage without a prompt count, much thinking", "yes"),
        "cached": Fault("half of the prompt from the service's cache", "yes"),
        "cached_over": Fault("more cached tokens than the prompt has", "yes"),
        "negative": Fault("counts below zero", "yes"),
        "absurd": Fault("99999999999999 prompt tokens", "yes"),
        "text_counts": Fault("counts as strings and fractions", "yes"),
        "overlong": Fault("four times max_output_tokens", "yes"),
        "dearer": Fault("the dearest model answers", "yes"),
        "unpriced": Fault("a model that nobody knows answers", "yes"),
    },
    "odd forms": {
        "201": Fault("a whole answer under 201", "yes"),
        "203": Fault("a whole answer under 203", "yes"),
        "206": Fault("a whole answer under 206", "yes"),
        "error0": Fault("an error of code 0 beside the answer", "yes"),
        "finish_stop": Fault("finishReason `stop`", "yes"),
        "finish_length": Fault("finishReason `length`", "yes"),
        "finish_2": Fault("finishReason 2, the enum's number", "yes"),
        "surrogate": Fault("half a character, escaped", "yes"),
        "bad_utf8": Fault("bytes that are no UTF-8", "yes"),
        "bom": Fault("a byte order mark", "yes"),
        "deep": Fault("300 levels in a field nobody reads", "yes"),
        "sse": Fault("an event stream", "yes"),
        "json_array": Fault("the array of a stream", "yes"),
        "openai": Fault("OpenAI's shape", "yes"),
        "echo": Fault("the request's headers, key and all, in the answer", "yes"),
        "echo_error": Fault("the same in a 500"),
        "two_gzip": Fault("two gzip members", "yes"),
        "x_gzip": Fault("Content-Encoding: x-gzip", "yes"),
    },
    "streams": {
        "stream_error": Fault("of a streamed answer half the pieces, then an error", "lost"),
        "stream_short": Fault("of a streamed answer half the pieces, then the end", "lost"),
        "stream_idle": Fault("of a streamed answer half the pieces, then silence", "lost"),
        "stream_unended": Fault("a streamed answer without its last blank line", "yes"),
    },
    "unreadable answers": {
        "cut_json": Fault("half the JSON in a whole response", "unread"),
        "html200": Fault("a gateway's page in place of the answer", "unread"),
        "empty_body": Fault("no body", "unread"),
        "false_gzip": Fault("Content-Encoding: gzip, and it is not", "unread"),
        "cut_gzip": Fault("gzip that ends early", "unread"),
        "big_header": Fault("a header of 64 kB", "unread"),
        "two_lengths": Fault("Content-Length twice", "unread"),
        "bad_chunk": Fault("a chunk without a size", "unread"),
        "bomb": Fault("512 MiB of blanks, gzipped", "unread"),
        "endless": Fault("blanks without an end", "unread"),
    },
    "broken connections": {
        "reset": Fault("reset before the first byte"),
        "hang": Fault("no answer until the client gives up"),
        "truncated": Fault("closed in the middle of the body", "lost"),
        "paid_reset": Fault("reset after the answer was made", "lost"),
        "paid_hang": Fault("made, billed, never sent", "lost"),
    },
}
"""Every fault by its name; `408`, `413` and `html502` are those of a proxy."""

KINDS: Mapping[str, Fault] = {name: fault for group in GROUPS.values() for name, fault in group.items()}


IN_LINES: frozenset[str | None] = frozenset(
    name
    for group in ("answers without an answer", "packs", "JSON that is not as it was asked for", "odd counts")
    for name in GROUPS[group]
)
"""Those that stand in an answer itself, and meet the lines of a batch too."""


def bill_of(kind: str | None) -> Bill:
    """What the server bills for a request with that fault."""
    return "yes" if kind is None else KINDS[kind].bill


def told() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Each group with its faults: name, and what is sent and billed."""
    bills = {"no": "", "yes": "; billed", "unread": "; billed, not readable", "lost": "; billed, not delivered"}
    longest = max(map(len, KINDS))
    for group, kinds in GROUPS.items():
        yield group, [(name.ljust(longest), f"{fault.says}{bills[fault.bill]}") for name, fault in kinds.items()]


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
            first.append((kind.strip(), times_of(item, amount)))
        else:
            rates.append((kind.strip(), rate_of(item, amount) if mark else 1.0))
    total = sum(rate for _, rate in rates)
    if total > 1 + 1e-9:
        raise ValueError(f"the rates in {spec!r} add up to {total:g}; at most 1 of the requests can fail")
    return Faults(tuple(rates), tuple(first))


def luck(seed: int, purpose: str, prompt: int, attempt: int) -> float:
    """A number in [0, 1) that depends on nothing else."""
    key = f"{seed}/{purpose}/{prompt}/{attempt}".encode()
    return int.from_bytes(blake2b(key, digest_size=6).digest(), "big") / 2**48


def times_of(item: str, amount: str) -> int:
    """How many of the first fail, as it stands after `*` in `item`; raises ValueError."""
    if not amount.strip().isdecimal() or int(amount) < 1:
        raise ValueError(f"{item!r}: after `*` stands how many of the first requests fail, such as 503*3")
    return int(amount)


def rate_of(item: str, amount: str) -> float:
    """The rate that stands after `:` in `item`; raises ValueError."""
    try:
        rate = float(amount)
    except ValueError:
        rate = -1.0
    if not 0 <= rate <= 1:
        raise ValueError(f"{item!r}: after `:` stands a rate from 0 to 1, such as 503:0.05")
    return rate
