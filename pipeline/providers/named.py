"""What a refusal names: limits and waits, in details, in words and in headers. Pure, and never raises."""

import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

from pipeline.providers.foreign import mapping, mappings, string, whole_number
from pipeline.records import QuotaHit

# --- quotas -----------------------------------------------------------------------------------------------------------

_SPOKEN_LIMIT = re.compile(r"metric: ([^,\s]{1,200}), limit: ([0-9]{1,15})")
_OPENAIS_LIMIT = re.compile(r"(requests|tokens) per min\w*(?: \(\w{3}\))?[.:] limit:? ([0-9]{1,15})", re.IGNORECASE)
"""`on tokens per min (TPM): Limit 30000, Used 28039`, and the older `on requests per min. Limit: 3 / min`.

Its day is a rolling one, which opens again after minutes: only the wait tells.
"""
_OPENROUTERS_LIMIT = re.compile(r"limit exceeded: ([\w\-]{0,50}-per-day)", re.IGNORECASE)
_VERTEXS_METRIC = re.compile(r"Quota exceeded for ([\w.]{1,100}/\w{1,100})")  # without its limit
_LONGEST_RESET_S = 60.0


def quota_hits(message: str, details: Sequence[Mapping[str, Any]] = ()) -> tuple[QuotaHit, ...]:
    """The quotas that a refusal names, each once, in its order.

    In a QuotaFailure an absent `quotaValue` is 0 (zeros are omitted on the wire) unless the message gives the number;
    one that is there and no count says nothing.
    """
    spoken: dict[str, int] = {}
    for metric, limit in _SPOKEN_LIMIT.findall(message):
        spoken[metric] = max(int(limit), spoken.get(metric, 0))
    hits: list[QuotaHit] = []
    for detail in details:
        for violation in mappings(detail.get("violations")):
            metric, quota_id = string(violation.get("quotaMetric")), string(violation.get("quotaId"))
            if metric or quota_id:
                value = violation.get("quotaValue")
                count = whole_number(value)
                if count is None:
                    count = spoken.get(metric, 0 if value is None else None)
                hits.append(_hit(quota_id or metric, metric, count))
        metadata = mapping(detail.get("metadata"))
        if quota_id := string(metadata.get("quota_limit")):
            limit = whole_number(metadata.get("quota_limit_value"))
            hits.append(_hit(quota_id, string(metadata.get("quota_metric")), limit))
    if not hits:
        # Details lost on the way: the window of such a limit is unknown, so only a zero says anything.
        hits = [_hit(metric, metric, None if limit else 0) for metric, limit in spoken.items()]
    if not hits and "too large" not in message:  # what is too large for a whole minute is no matter of pace
        hits = [_hit(f"{meter.lower()}_per_minute", "", int(limit)) for meter, limit in _OPENAIS_LIMIT.findall(message)]
        hits += [_hit(name.replace("-", "_"), "", None) for name in _OPENROUTERS_LIMIT.findall(message)]
        hits += [_hit(metric, metric, None) for metric in _VERTEXS_METRIC.findall(message)]
    return tuple(dict.fromkeys(hits))


def header_hits(fields: Mapping[str, str]) -> tuple[QuotaHit, ...]:
    """The limits of a minute of which OpenAI's headers say that nothing is left; `fields` by names in lower case.

    One that is not whole again within a minute is another window's: Groq tells its day's requests by the same names.
    """
    hits = []
    for meter in ("requests", "tokens"):
        limit, left, reset = (fields.get(f"x-ratelimit-{name}-{meter}", "") for name in ("limit", "remaining", "reset"))
        count, reset_s = whole_number(limit), parse_duration(reset)
        if count and left == "0" and reset_s is not None and reset_s <= _LONGEST_RESET_S:
            hits.append(_hit(f"{meter}_per_minute", "", count))
    return tuple(hits)


def _hit(quota_id: str, metric: str, limit: int | None) -> QuotaHit:
    name = f"{quota_id} {metric}".lower()
    return QuotaHit(
        quota_id=quota_id[:200],
        meter="tokens" if "token" in name else "requests",
        window="day" if "perday" in name or "per_day" in name else "minute",
        limit=limit,
    )


# --- waiting ----------------------------------------------------------------------------------------------------------

_UNIT_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"([0-9]{1,9}(?:\.[0-9]{0,9})?)(h|ms|m|us|µs|ns|s)")
_DURATION = re.compile(rf"(?:{_PART.pattern})+")
_SPOKEN_WAIT = re.compile(r"(?:retry|try again) (?:in|after) ([0-9][0-9.hmnuµs]{0,60})(?: ?(s)ec)?", re.IGNORECASE)


def parse_duration(text: str) -> float | None:
    """Seconds of `34s`, `45.837906927s` (protobuf) and `10h17m5.723541104s`, `850.5ms` (Go); None for anything else."""
    if not _DURATION.fullmatch(text):
        return None
    return sum(float(number) * _UNIT_S[unit] for number, unit in _PART.findall(text))


@lru_cache(maxsize=8)  # answers of the same second bear the same date
def http_date(value: str | None) -> float | None:
    """Seconds since the epoch of an HTTP date such as `Sun, 22 Nov 2026 10:00:00 GMT`; None when it is not one."""
    if not value:
        return None
    try:
        moment = parsedate_to_datetime(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def retry_after(
    fields: Mapping[str, str], served_at: float | None, message: str, details: Sequence[Mapping[str, Any]] = ()
) -> float | None:
    """The longest of the waits that headers, details and message ask for, in seconds; None: they ask for none."""
    header, milliseconds = fields.get("retry-after"), fields.get("retry-after-ms", "")
    waits = [_header_wait(header, served_at)] if header else []
    waits.append(parse_duration(f"{milliseconds}ms"))
    waits += [parse_duration(string(detail.get("retryDelay"))) for detail in details]
    for number, seconds in _SPOKEN_WAIT.findall(message):
        waits.append(parse_duration(number.rstrip(".") + seconds.lower()))
    return max((wait for wait in waits if wait is not None), default=None)


def _header_wait(value: str, served_at: float | None) -> float | None:
    seconds = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*", value)
    if seconds:
        return float(seconds[1])
    moment = http_date(value)
    if moment is None:
        return None
    return max(0.0, moment - (time.time() if served_at is None else served_at))
