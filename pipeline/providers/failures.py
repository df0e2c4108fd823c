"""What a failed exchange means: status, headers and body in, a `Failure` out. Pure, and never raises.

Written for Google's error model (`google.rpc.Status` with ErrorInfo, QuotaFailure and RetryInfo), for OpenAI's (`type`
and `code` in words), and for what relays make of both: arrays, JSON as a string inside `message`, string codes, a 429
dressed as a 502, HTML, plain text.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pipeline.providers.foreign import load, mapping, mappings, string, whole_number
from pipeline.providers.named import header_hits, http_date, quota_hits, retry_after
from pipeline.providers.phrases import MEANING_OF_NAME, STATUS_OF_NAME, Meaning, names_a_day, said
from pipeline.providers.transport import Lost
from pipeline.records import ErrorKind, Failure, FailureKind, QuotaHit, Reply
from pipeline.terminal import KEY_SHAPED

MESSAGE_CHARS = 300
_DAY_SCALE_WAIT_S = 2 * 3600.0
"""What is said of a day beside a wait this long is meant: a rolling day's quota may ask for minutes."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An error body, in whichever shape it came; absent fields are empty."""

    message: str = ""
    code: int | None = None  # HTTP status that the body itself names
    names: tuple[str, ...] = ()  # `status`, string `code`, `type`: RESOURCE_EXHAUSTED, insufficient_quota, …
    details: tuple[Mapping[str, Any], ...] = ()


def classify(status: int, headers: Mapping[str, str], body: bytes, *, secret: str = "") -> Failure:
    """Read a response that is not an answer; `secret` (the key) is blotted out of the message.

    A body that names another status than the response is believed: relays answer 502 for a 429. `retry_after_s` is the
    longest of the Retry-After header, RetryInfo and the message, which disagree in recorded traffic. For a day's quota
    it often repeats the minute window: the caller knows when the day ends.
    """
    fields = {name.lower(): value for name, value in headers.items()}
    fault = read_fault(body)
    if fault is None:
        fault = Fault(message=_plain_words(body))
    served_at = http_date(fields.get("date"))
    wait_s = retry_after(fields, served_at, fault.message, fault.details)
    believed = _believed(status, fault)
    hits = quota_hits(fault.message, fault.details) or (header_hits(fields) if believed == 429 else ())
    kind, error_kind = _meaning(believed, fault, hits, wait_s)
    return Failure(
        kind=kind,
        error_kind=error_kind,
        message=_message(status, kind, fault, hits, secret, _host(fields.get("location", ""))),
        http_status=status,
        retry_after_s=None if kind == "fatal" else wait_s,
        quota=hits,
        of_capacity=kind == "rate_limit" and not hits and said(fault.message) == "capacity",
        served_at=served_at,
    )


def unanswered(lost: Lost, *, secret: str = "") -> Failure:
    """A request that got no response, or none that could be read: worth another try, unless a proxy refuses all.

    What was sent may have been answered and billed. What breaks HTTP comes back the same way: it is asked once more.
    """
    unreadable = lost.kind == "unreadable"
    return Failure(
        kind="proxy" if lost.kind == "proxy" else "transient",
        error_kind="malformed_reply" if unreadable else "timeout" if lost.kind == "timeout" else "network",
        message=clean(lost.message, secret),
        sent=lost.sent,
        billed=lost.sent,
        most_requests=2 if unreadable else None,
        advice=lost.advice,
    )


_LOST_FILE = re.compile(r"\bFile\b")


def misses_a_file(outcome: Reply | Failure) -> bool:
    """Whether a request was refused for a file: one that is over is not told from one that never was (403)."""
    return (
        isinstance(outcome, Failure) and outcome.http_status in (403, 404) and bool(_LOST_FILE.search(outcome.message))
    )


# --- the error body ---------------------------------------------------------------------------------------------------


def read_fault(body: bytes) -> Fault | None:
    """Find the error object in a body; None when there is none."""
    return _fault(load(body), nested=3)


_MESSAGES = ("message", "msg", "detail", "error_msg", "error_message", "errmsg", "status_msg", "error_description")
_CODES = ("code", "error_code", "errcode", "status_code")


def _fault(value: object, nested: int) -> Fault | None:
    value = mapping(value)
    error = value.get("error") or value.get("errors") or value.get("base_resp") or value.get("Error")
    if isinstance(error, str):
        error = {**value, "message": error}
    elif isinstance(error, list) and error and isinstance(error[0], str):
        error = {**value, "message": error[0]}
    else:
        error = mapping(error) or value
    message = next((error[name] for name in _MESSAGES if isinstance(error.get(name), str)), None)
    codes = [error[name] for name in _CODES if name in error]
    code = next((number for number in map(whole_number, codes) if number is not None), None)
    if message is None and code is None:
        return None
    outer = Fault(
        message=message or "",
        code=code if code is not None and 400 <= code <= 599 else None,
        names=tuple(
            name
            for name in map(string, (error.get("status"), *codes, error.get("type")))
            if name and not name.isdigit()
        ),
        details=tuple(mappings(error.get("details"))),
    )
    start = outer.message.find("{")
    if nested and start >= 0:
        inner = _fault(load(outer.message[start : outer.message.rfind("}") + 1]), nested - 1)
        if inner is not None:
            return Fault(
                inner.message, inner.code or outer.code, inner.names + outer.names, inner.details or outer.details
            )
    return outer


def _plain_words(body: bytes) -> str:
    """Something to say about a body that is not JSON: the title of a page, the start of a text."""
    text = body[:4096].decode("utf-8", "replace").strip()
    title = re.search(r"<title[^>]*>([^<]*)", text, re.IGNORECASE)
    if title:
        return title[1]
    return "" if text.startswith(("<", "{", "[")) else text[:120]


# --- what it means ----------------------------------------------------------------------------------------------------

_UNKNOWN_FIELD = re.compile(
    r"unknown name \"|cannot find field|no such field|unsupported (?:parameter|value):|unrecognized request argument"
    r"|extra inputs are not permitted",
    re.IGNORECASE,
)


_NO_LANE = re.compile(r"\bservice_?tier\b|\bflex(?: processing)? is not (?:available|supported)\b", re.IGNORECASE)
"""As OpenAI refuses flex for a model that has none; it falls back to nothing."""


def _believed(status: int, fault: Fault) -> int:
    named = [code for name in fault.names if (code := STATUS_OF_NAME.get(name.lower()))]
    # one-api says that it is busy in place of any 429 from behind it, and leaves the code: that purse is not ours.
    if 402 in named and not (status == 429 and said(fault.message) == "busy"):
        return 402
    return 429 if status == 429 else fault.code or next(iter(named), status)


def _meaning(
    status: int, fault: Fault, hits: Sequence[QuotaHit], wait_s: float | None
) -> tuple[FailureKind, ErrorKind]:
    text = fault.message
    # A 400 may quote the request, and what a prompt says is not what the service says.
    words = None if hits else said(_without_quotes(text) if status in (400, 413, 422) else text) or _named(fault)
    if status == 402 or words == "money":
        return "spend_limit", "quota"
    if words == "too_long" and 400 <= status < 500:  # also a 429: no minute is long enough for it
        return "reject", "too_long"
    if status == 429 or hits or (words == "pace" and status not in (401, 407)):
        return _quota_meaning(hits, wait_s, text), "quota"
    if words == "blocked" and 400 <= status < 500:
        return "reject", "prompt_blocked"
    if status in (401, 403, 407) or words == "key" or (status == 400 and _refuses_key_or_region(fault)):
        return "auth", "auth"
    if words == "no_channel":
        return "fatal", "server"
    if words == "busy" and status in (400, 409, 422):
        return "transient", "server"
    # Every request of a run has the same fields, path and method: what is wrong with them is wrong with all.
    if status in (404, 405, 410, 501) or 300 <= status < 400 or words == "no_model":
        return "fatal", "invalid_request"
    if status in (400, 422) and (_UNKNOWN_FIELD.search(text) or _NO_LANE.search(_without_quotes(text))):
        return "fatal", "invalid_request"
    if status == 408:
        return "transient", "timeout"
    if status in (425, 498, 499) or status >= 500:  # 498 is Groq's where flex has no room
        return "transient", "server"
    if status >= 400:
        return "reject", "invalid_request"
    return "transient", "server"  # 200 and the like, but no answer: nothing was bought


def _named(fault: Fault) -> Meaning | None:
    return next((meaning for name in fault.names if (meaning := MEANING_OF_NAME.get(name.lower()))), None)


def _quota_meaning(hits: Sequence[QuotaHit], wait_s: float | None, text: str) -> FailureKind:
    """A wait of hours alone names no quota: a relay asks for it when a channel of many is blocked for a day."""
    if any(hit.limit == 0 for hit in hits):
        return "fatal"
    if any(hit.window == "day" for hit in hits) or ((wait_s or 0.0) > _DAY_SCALE_WAIT_S and names_a_day(text)):
        return "day_quota"
    return "rate_limit"


def _refuses_key_or_region(fault: Fault) -> bool:
    reasons = (detail.get("reason") for detail in fault.details)
    return (
        "FAILED_PRECONDITION" in fault.names  # region or billing; nothing else of ours has preconditions
        or any(isinstance(reason, str) and reason.startswith("API_KEY_") for reason in reasons)
    )


# --- words for a person -----------------------------------------------------------------------------------------------

_MODEL = re.compile(r"model: ([\w.\-/]{1,100})")
_QUOTED = re.compile(r"\"([^\"]*)(\"?)")
_ECHO = '"…"'
_ECHO_CHARS, _LEAST_ECHO_CHARS = 20, 8
_IDENTIFIER = re.compile(r"[\w.\-/:\[\]]{1,64}")


def clean(text: str, secret: str = "", limit: int = MESSAGE_CHARS) -> str:
    """One printable line of at most `limit` characters, without keys, and without quoted text that is not a name.

    A 400 may quote the request: a quoted run is kept only when it looks like a field or a model, never a sentence.
    """
    if secret:
        text = text.replace(secret, "***")
    text = KEY_SHAPED.sub("***", text)[:4096]
    text = " ".join("".join(c if c.isprintable() else " " for c in _without_quotes(text)).split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def without_prompt(message: str, *texts: str) -> str:
    """A message without what it repeats of the texts that were sent: 20 characters in a row or more, or all of one."""
    for sent in (" ".join(text.split()) for text in texts):
        least = min(_ECHO_CHARS, len(sent))
        at = 0
        while least >= _LEAST_ECHO_CHARS and at < len(message):
            end = at + least
            if message.endswith("…") and end >= len(message) > at + _LEAST_ECHO_CHARS:
                end = len(message) - 1  # cut off there: it may have gone on as the text does
            if end > len(message) or message[at] == " " or message[at:end] not in sent:
                at += 1
                continue
            while end < len(message) and message[at : end + 1] in sent:
                end += 1
            message = f"{message[:at]}{_ECHO}{' ' * (message[end - 1] == ' ')}{message[end:]}"
            at += len(_ECHO)
    return message


def _without_quotes(text: str) -> str:
    for quoted in _QUOTED.finditer(text):
        if not quoted[2] or not _IDENTIFIER.fullmatch(quoted[1]):
            # All up to the last quote goes: which quotes belong together is a guess when the quoted text has some.
            balanced = text.count('"') % 2 == 0
            return f'{text[: quoted.start()]}"…"{text[text.rindex(chr(34)) + 1 :] if balanced else ""}'
    return text


def _message(
    status: int, kind: FailureKind, fault: Fault, hits: Sequence[QuotaHit], secret: str, elsewhere: str
) -> str:
    model = _MODEL.search(fault.message)
    name = clean(model[1].rstrip("."), secret) if model else "the model"
    if kind == "fatal" and hits:
        zero = ", ".join(_quota_words(hit) for hit in hits if hit.limit == 0)
        return clean(f"HTTP {status}: {name} is not offered to this project: no {zero}; another model or tier has some")
    if kind in ("rate_limit", "day_quota") and hits:
        used = ", ".join(_quota_words(hit) + (f" (limit {hit.limit})" if hit.limit else "") for hit in hits)
        return clean(f"HTTP {status}: quota of {name} used up: {used}")
    reasons = (string(detail.get("reason")) for detail in fault.details if kind == "auth")  # which refusal of many
    named = next((f" {clean(word, secret, 40)}" for word in (*filter(None, reasons), *fault.names)), "")
    if 300 <= status < 400:
        return clean(f"HTTP {status}: redirects to {elsewhere}: set [endpoint] base_url to that address", secret)
    return clean(f"HTTP {status}{named}: {clean(fault.message, secret) or 'no explanation'}")


def _host(location: str) -> str:
    """Where a redirect points to, as far as it can be shown: its path and query are the request's."""
    try:
        url = urlsplit(location.strip())
        port = f":{url.port}" if url.port else ""
    except ValueError:
        return "an address that is none"
    if not url.hostname:
        return "another path of the same host" if location else "an address that it does not name"
    return f"{url.scheme or 'https'}://{url.hostname}{port}"


def _quota_words(hit: QuotaHit) -> str:
    return f"{hit.meter} per {hit.window}"
