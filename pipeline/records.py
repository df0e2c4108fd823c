"""The values that travel between modules: frozen, money in `Decimal` USD, times in UTC, durations in seconds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from decimal import Decimal
from operator import attrgetter
from typing import Any, Literal, get_args

Status = Literal["ok", "truncated", "blocked", "invalid", "error"]
STATUS_MEANS: Mapping[Status, str] = {
    "ok": "a whole answer",
    "truncated": "an answer that was cut at `max_output_tokens`, or that broke off as a stream: kept, flagged,"
    " paid for",
    "blocked": "refused or withheld by a filter",
    "invalid": "never sent, or refused for what it is",
    "error": "no usable answer",
}
STATUSES: tuple[Status, ...] = tuple(STATUS_MEANS)

ErrorKind = Literal[
    "truncated",
    "prompt_blocked",
    "answer_blocked",
    "recitation",
    "empty_input",
    "template_error",
    "invalid_messages",
    "file",
    "too_long",
    "invalid_request",
    "empty_answer",
    "schema",
    "check",
    "malformed_reply",
    "quota",
    "network",
    "timeout",
    "server",
    "auth",
]
CAUSES: Mapping[ErrorKind, str] = {
    "truncated": "the answer reached `max_output_tokens`, or its stream broke off; what there is of it is kept",
    "prompt_blocked": "the safety filter refused the prompt",
    "answer_blocked": "the safety filter withheld the answer",
    "recitation": "the answer repeated published text and was cut",
    "empty_input": "the text column is empty, or the whole prompt: nothing was sent",
    "template_error": "the template fails on the values of this row",
    "invalid_messages": "the conversation of this row cannot be sent: nothing was",
    "file": "a file of the row is missing, empty, too large, of a form that is not taken, or not where files may lie:"
    " nothing was sent",
    "too_long": "larger than the model's context, or than a whole minute's token quota; a prompt above 67,108,864"
    " characters is not even counted",
    "invalid_request": "the service refused this prompt (400, 404, 413, 422)",
    "empty_answer": "the service answered without text",
    "schema": "the answer is not as `[output] schema` says, nor the one that was asked for to repair it; it is kept",
    "check": "a `[[check]]` does not hold for the answer, nor for the one that was asked for after it; it is kept",
    "malformed_reply": "the service answered something that cannot be read: three times, or twice where the same came"
    " back",
    "quota": "refused for quota; a refusal costs no attempt, so the row waits and does not end with it",
    "network": "no connection, or it broke",
    "timeout": "no answer in time",
    "server": "500, 502, 503 or 504 until the attempts ran out, or until the 10 minutes were over that one row waits"
    " when the service asks it to",
    "auth": "the key, the project or the region was refused",
}
"""What happened to a row that is not ok."""
JUDGED: frozenset[ErrorKind] = frozenset({"schema", "check"})
"""Causes of answers that are whole, and not as the job wants them."""
PASSING: frozenset[ErrorKind] = frozenset({"quota", "network", "timeout", "server", "auth"})
"""Failures that may pass by themselves and cost nothing: a row that ends in one is tried again by the next run."""

Step = Literal["answer", "map", "reduce", "refine", "repair", "retry", "escalate", "turn", "pack", "cache", "rest"]
STEPS: tuple[Step, ...] = get_args(Step)
AGAIN: tuple[Step, ...] = ("repair", "retry", "escalate")
"""Steps that ask for an answer once more."""
LATER: frozenset[Step] = frozenset({"reduce", "refine", "repair", "retry", "escalate", "turn", "rest"})
"""Steps whose prompts hold answers to earlier ones: what they will hold is not known before."""

EMULATOR_HEADER = "x-pipeline-emulator"
EMULATOR_FIELD = "pipelineEmulator"
"""The emulator's marks, on every response of it: a header, and the first field of every JSON body."""
EMULATOR_RESPONSE_ID = "pipeline-emulator-"
"""How an emulated answer's `responseId` begins: a relay that passes on known fields only passes on that one."""

Counted = Literal["input", "total", "reserved"]
"""What a quota on tokens counts of a request: input; input and output; input and the most that may be answered."""

Takes = Literal["full", "day_quota", "outage", "deadline"]
"""Why a target takes what others before it are asked first: they have no room, none today, are down, or too slow."""
TakesOver = Literal["blocked", "truncated", "too_long", "check"]
"""Answers of others after which a target is asked too: one that was withheld, one that was cut, none for its length,
one for which a check of the job does not hold."""

ALWAYS: frozenset[Takes] = frozenset({"full", "day_quota", "outage"})
TAKEN_OVER: tuple[TakesOver, ...] = get_args(TakesOver)

Lane = Literal["standard", "flex", "batch", "priority"]
"""How a service is asked: flex costs less and may be turned away, batch costs less and is answered within a day."""

LaneChoice = Literal["standard", "flex", "batch", "auto"]
"""What a job says of its lanes: `flex` and `batch` are asked in standard in the end; `auto` is whatever costs least."""

FLEX_S = 900.0
"""The longest that flex may take to answer: Google's target is 1 to 15 minutes (2026-07-30)."""
FLEX_TRIES = 3
"""Requests of one prompt in flex that come to nothing, after which it is asked in standard where nothing is due."""

FromFlex = Literal["turned_away", "failed", "last_call", "by_service"]
FROM_FLEX: Mapping[FromFlex, str] = {
    "turned_away": "flex turned it away three times, or nearly all for half an hour",
    "failed": "it failed in flex",
    "last_call": "flex had not answered it by its last call",
    "by_service": "the service took it in flex and served it in standard",
}
"""Why a request that was asked in flex was served in standard."""

FailureKind = Literal["rate_limit", "day_quota", "spend_limit", "transient", "reject", "auth", "proxy", "fatal", "lost"]
"""`lost`: whoever was to make the request says nothing of it any more, or, where it was not `sent`, gave it back."""


MediaKind = Literal["image", "audio", "video", "pdf"]
MEDIA_KINDS: tuple[MediaKind, ...] = get_args(MediaKind)
Resolution = Literal["low", "medium", "high"]
"""How closely a model looks at images, at the frames of a video and at pages."""


@dataclass(frozen=True, slots=True)
class Media:
    """A file beside the text of a prompt. Its bytes are in `data`, or are read from `path` or `url` when it is sent.

    Of one that is elsewhere `digest` is that of its address, and `size_bytes` is 0.
    """

    kind: MediaKind
    mime_type: str
    digest: str  # BLAKE2b of its bytes
    size_bytes: int
    tokens: int  # as the service is expected to count it
    path: str = ""
    data: bytes | None = field(default=None, repr=False)
    uri: str = ""  # where the service finds it: nothing of it is sent
    url: str = ""  # where we fetch it when it is sent


@dataclass(frozen=True, slots=True)
class Document:
    """One row of the input. `row` counts from 0 over the rows that `where` lets through."""

    row: int
    key: str
    fields: Mapping[str, object]  # the columns that the templates use
    text: str | None = None  # the column that may be chunked; None when the job names none
    rule: int = 0  # of the job's `[[route]]` rules, the one that it falls under
    media: tuple[Media, ...] = ()  # the files that stand before the text
    unfit: str = ""  # why one of its files cannot be read or sent


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one or more calls, as they are billed; a counter the service leaves out is 0.

    `input_tokens` includes `cached_tokens`; `output_tokens` excludes `thinking_tokens`, which are billed as output too;
    `tool_tokens` are billed as input.
    """

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    thinking_tokens: int = 0
    tool_tokens: int = 0
    estimated: bool = False  # a count was missing or impossible: inferred from the total, or counted by us
    output_told: bool = field(default=True, compare=False)  # False: how much was thought, unseen, is not known
    searches: int = 0  # of the web, which are billed by their number
    sound_tokens: int = field(default=0, compare=False)  # of the input, uncached: some models bill it dearer; not kept

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.cached_tokens + other.cached_tokens,
            self.output_tokens + other.output_tokens,
            self.thinking_tokens + other.thinking_tokens,
            self.tool_tokens + other.tool_tokens,
            self.estimated or other.estimated,
            searches=self.searches + other.searches,
            sound_tokens=self.sound_tokens + other.sound_tokens,
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of one prompt: an answer that was paid for, or, with `raw` empty, a failure that was not.

    `text` is the answer without thoughts; `raw` the response body as it came. `status` is never an exception: a blocked
    or truncated answer is a reply like any other.
    """

    text: str
    status: Status
    finish_reason: str | None = None  # as the service names it: STOP, MAX_TOKENS, SAFETY, …
    error_kind: ErrorKind | None = None
    error: str | None = None  # one line for a person; never a key, never prompt text
    usage: Usage = Usage()
    model: str = ""  # as the service reports it: the model that answered and is billed
    asked: str = ""  # the model that was asked; not kept
    response_id: str = ""
    raw: bytes = b""
    endpoint: str = ""
    latency_s: float = 0.0  # of the request that was answered
    attempts: int = 1  # requests made for this prompt, refusals for quota not counted
    rate_limited: int = 0  # refusals for quota
    finished_at: float = 0.0  # seconds since the epoch
    served_at: float | None = None  # the response's Date header, seconds since the epoch
    cost_usd: Decimal | None = Decimal(0)  # None: the price is unknown
    standard_usd: Decimal | None = None
    """What it would have cost in standard, or, in a rehearsal, how much more than in its lane; None: that was its lane,
    or unknown."""
    at_most_usd: Decimal | None = Decimal(0)  # so much more it may have cost; None: unknown
    worst_usd: Decimal | None = None  # what it was reckoned to cost at most before it was sent, under a cap
    unread_usd: Decimal | None = Decimal(0)  # of other requests for this prompt, whose replies could not be read
    emulated: bool = False  # it bears the emulator's mark
    target: str = ""  # that gave it, by its name in the job file
    lane: Lane = "standard"  # in which it was served, and is billed
    fell_back: FromFlex | None = None  # why it was not served in flex, where it was asked there
    extras: str = ""  # what came beside the text, as one JSON object; empty: nothing
    predicted: Literal["", "right", "wrong", "mendable"] = ""  # by an estimate, whose word is taken for what it is
    fate: str = ""  # what the service says of the model's end; not kept
    continuation: str = ""  # what a request that goes on with the answer has to name; empty: it is over
    before: "tuple[Reply, ...]" = ()  # of others that were asked first, where the answer of those would not do
    generation: int = 0  # of the run that bought it, where that is an earlier one; 0: this one
    members: "tuple[Reply | None, ...]" = ()  # to a pack: the answer to each of its prompts, None where there is none


_REPLY_PUTS = {each.name: Reply.__dict__[each.name].__set__ for each in fields(Reply)}
_REPLY_VALUES = attrgetter(*_REPLY_PUTS)


def changed(reply: Reply, **new: Any) -> Reply:
    """`dataclasses.replace` of a reply in two fifths of its time (6 µs): each is changed three times on its way."""
    made: Reply = object.__new__(Reply)
    for put, value in zip(_REPLY_PUTS.values(), _REPLY_VALUES(reply), strict=True):
        put(made, value)
    for name, value in new.items():
        _REPLY_PUTS[name](made, value)
    return made


Parse = Callable[[bytes, str], Reply]
"""Reads a reply's body again, given the endpoint that it came from: by the provider that gave it."""


@dataclass(frozen=True, slots=True)
class QuotaHit:
    """One violated quota of a 429."""

    quota_id: str
    meter: Literal["requests", "tokens"]
    window: Literal["minute", "day"]
    limit: int | None = None  # the true limit, when the service tells it; 0: the model is not offered at all


@dataclass(frozen=True, slots=True)
class Failure:
    """What a failed request means for the caller. `message` is one line for a person, without key or prompt text."""

    kind: FailureKind
    error_kind: ErrorKind
    message: str
    http_status: int | None = None  # None: no response
    retry_after_s: float | None = None
    quota: tuple[QuotaHit, ...] = ()
    of_capacity: bool = False  # refused for want of room at the service: no window of the project's own is full
    sent: bool = True  # False when the request provably never reached the server
    served_at: float | None = None  # the response's Date header, seconds since the epoch
    billed: bool = False  # the service may have billed it all the same: against a cap it counts as its worst case
    most_requests: int | None = None  # requests that one prompt may make in all for this cause; None: the usual number
    raw: bytes = b""  # the start of a body that could not be read, to be kept with what it may have cost
    usage: Usage | None = None  # what such a body says of tokens all the same: it cost that at least
    model: str = ""  # that answered, beside `usage`
    emulated: bool = False  # it bears the emulator's mark
    advice: str = ""  # what to set or to look at, where that is known


RESET_ZONE = "America/Los_Angeles"
"""Google resets requests per day at midnight Pacific (rate limit page, 2026-10)."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the project may use of one model. None: unknown."""

    rpm: int | None = None
    tpm: int | None = None
    rpd: int | None = None
    concurrency: int | None = None
    reset_zone: str = RESET_ZONE  # at whose midnight `rpd` begins anew
    batch_tokens: int | None = None  # of input, that may wait in batches at once
    tokens: Counted = "input"  # what `tpm` counts
    sockets: int | None = None  # that this process may open, where that bounds the requests in flight


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one document; the sums are over its calls."""

    row: int
    key: str
    status: Status
    response: str | None
    error_kind: ErrorKind | None = None
    error: str | None = None
    finish_reason: str | None = None
    model: str | None = None
    target: str | None = None
    usage: Usage = Usage()
    input_tokens_est: int = 0
    cost_usd: Decimal | None = None  # None: the price is unknown
    calls: int = 0  # replies that were paid for
    chunks: int = 0  # pieces the text was cut into; 1 when it was sent whole, 0 when nothing was sent
    attempts: int = 0
    rate_limited: int = 0
    latency_s: float = 0.0  # sum over the calls
    finished_at: datetime | None = field(default=None)
    changes: str | None = None  # what `--set` changed of [model] for it, as JSON
    extras: str | None = None  # what came beside the answer, as one JSON object
