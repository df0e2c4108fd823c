"""The quotas of each project and model, and the 429 that refuses a request."""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.emulator import bodies
from pipeline.emulator.limits import ALGORITHMS, Closed, DayWindow, Meter, rest_of_minute
from pipeline.emulator.options import EmulatorOptions

_PROJECTS = 4_096  # quotas kept, one per key and model: the least recently used is forgotten


@dataclass(frozen=True, slots=True)
class Violation:
    """One quota that a request does not fit into."""

    quota: str  # rpm, tpm or rpd
    limit: int
    delay_s: float


class Quota:
    """The quotas of one project (here: key) and model; a routed name counts against the model that serves it."""

    def __init__(self, options: EmulatorOptions) -> None:
        minute = ALGORITHMS[options.algorithm]
        kinds: Sequence[tuple[str, int | None, Callable[[int], Meter]]] = (
            ("tpm", options.tpm, minute),
            ("rpm", options.rpm, minute),
            ("rpd", options.rpd, DayWindow),
        )
        self._meters = [(name, n, meter(n) if n else Closed()) for name, n, meter in kinds if n is not None]
        self._count_rejected = options.count_rejected

    def violations(self, now: float, tokens: int) -> tuple[Violation, ...]:
        """The quotas that a request of `tokens` input tokens would pass; none: it is admitted by `add`."""
        return tuple(
            Violation(name, limit, delay)
            for name, limit, meter in self._meters
            if (delay := meter.delay(now, tokens if name == "tpm" else 1)) > 0
        )

    def add(self, now: float, tokens: int) -> None:
        """Count an admitted request."""
        for name, _, meter in self._meters:
            meter.add(now, tokens if name == "tpm" else 1)

    def add_rejected(self, now: float) -> None:
        """Count a refused request, where refusals count: against the requests per minute only."""
        if self._count_rejected:
            for name, _, meter in self._meters:
                if name == "rpm":
                    meter.add(now, 1)


class Quotas:
    """The quotas of all projects and models."""

    def __init__(self, options: EmulatorOptions) -> None:
        self._options = options
        self._unlimited = options.rpm is None and options.tpm is None and options.rpd is None
        self._quotas: OrderedDict[tuple[str, str], Quota] = OrderedDict()

    def of(self, key: str, model: str) -> Quota | None:
        """The quota of that project and model; None when nothing is limited."""
        if self._unlimited:
            return None
        quota = self._quotas.get((key, model))
        if quota is None:
            quota = self._quotas[key, model] = Quota(self._options)
            if len(self._quotas) > _PROJECTS:
                self._quotas.popitem(last=False)
        self._quotas.move_to_end((key, model))
        return quota


def exhausted(violations: Sequence[Violation], model: str, now: float, options: EmulatorOptions) -> dict[str, Any]:
    """The body of the 429: each quota by name, its value unless it is 0, and the delay twice.

    The message tells nanoseconds, RetryInfo whole seconds, rounded down: waiting for it alone is too short.
    """
    if options.quota_details == "opaque":
        return bodies.error(429, bodies.EXHAUSTED)
    delay = max(_told_delay(violation, now, options) for violation in violations)
    lines, entries = [], []
    for violation in violations:
        metric, quota_id = _names(violation.quota, options.tier)
        lines.append(f"\n* Quota exceeded for metric: {metric}, limit: {violation.limit}, model: {model}")
        entry: dict[str, Any] = {
            "quotaMetric": metric,
            "quotaId": quota_id,
            "quotaDimensions": {"location": "global", "model": model},
        }
        if violation.limit:
            entry["quotaValue"] = str(violation.limit)
        entries.append(entry)
    message = f"{bodies.QUOTA_EXCEEDED}{''.join(lines)}\nPlease retry in {_go_duration(delay)}."
    details = [bodies.help_link(), bodies.quota_failure(entries), bodies.retry_info(f"{math.floor(delay)}s")]
    return bodies.error(429, message, details)


def _told_delay(violation: Violation, now: float, options: EmulatorOptions) -> float:
    short = violation.quota == "rpd" and options.day_delay == "short"
    return rest_of_minute(now) if short else violation.delay_s


def _names(quota: str, tier: int) -> tuple[str, str]:
    """quotaMetric and quotaId as the service names them for that tier."""
    per = "Day" if quota == "rpd" else "Minute"
    infix, suffix = {0: ("", "-FreeTier"), 1: ("", "")}.get(tier, (f"_{tier}", f"-PaidTier{tier}"))
    match quota == "tpm", tier == 0:
        case True, True:
            metric, quota_id = (
                "generate_content_free_tier_input_token_count",
                "GenerateContentInputTokensPerModelPerMinute",
            )
        case True, False:
            metric = f"generate_content_paid_tier{infix}_input_token_count"
            quota_id = "GenerateContentPaidTierInputTokensPerModelPerMinute"
        case False, True:
            metric, quota_id = "generate_content_free_tier_requests", f"GenerateRequestsPer{per}PerProjectPerModel"
        case _:
            metric = "generate_requests_per_model" + ("_per_day" if quota == "rpd" else "")
            quota_id, suffix = f"GenerateRequestsPer{per}PerProjectPerModel", ""
    return f"{bodies.SERVICE}/{metric}", quota_id + suffix


def _go_duration(seconds: float) -> str:
    """`51.386192716s`, `18h26m22s`: as Go prints durations."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f"{rest:.9f}".rstrip("0").rstrip(".") + "s"
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + text
