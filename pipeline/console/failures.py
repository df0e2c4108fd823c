"""Rows that are not ok: how many for which cause, what helps against it and costs, then the rows."""

import shlex
from collections.abc import Mapping, Sequence

from pipeline.console.screen import count, money, out, show_grid
from pipeline.records import PASSING
from pipeline.report import Failure
from pipeline.store.manifest import Manifest

_MOST_FAILURES = 50
_MEND = "mend the table: the next run buys only what changed"
_OTHERS = "a `[[target]]` with another model may answer: `fallback`"
_CURES: Mapping[str, str] = {
    **dict.fromkeys(("empty_input", "template_error", "invalid_messages", "file"), _MEND),
    **dict.fromkeys(("prompt_blocked", "answer_blocked", "recitation"), _OTHERS),
    "too_long": "`[chunk]` cuts long texts",
}


def show_failures(failures: Sequence[Failure], manifest: Manifest) -> None:
    """The rows without a whole answer, by cause and one by one."""
    if not failures:
        out.print("every row that was reached is ok")
        return
    by_cause: dict[str, list[Failure]] = {}
    for failure in failures:
        by_cause.setdefault(failure.error_kind or failure.status, []).append(failure)
    most_first = sorted(by_cause.items(), key=lambda each: -len(each[1]))
    sums = [(cause, count(len(rows)), cure(cause, rows, manifest)) for cause, rows in most_first]
    show_grid(("cause", "rows", "what helps"), sums)
    out.print()
    lines = [
        (str(failure.row), failure.key, failure.status, failure.error_kind or "", failure.error or "")
        for failure in failures[:_MOST_FAILURES]
    ]
    show_grid(("row", "id", "status", "cause", "what happened"), lines)
    if len(failures) > _MOST_FAILURES:
        out.print(f"… and {len(failures) - _MOST_FAILURES:,} more: `--json` lists all", style="dim")


def cure(cause: str, rows: Sequence[Failure], manifest: Manifest) -> str:
    """What helps rows that ended for a cause, as it would be typed, and what it costs.

    To ask again for twice as long an answer costs at most twice what the rows cost: their prompts stay as they are.
    """
    run = f"pipeline run {shlex.quote(manifest.job_path)}{' --offline' if manifest.offline else ''}"
    if cause in PASSING:
        return f"may pass by itself: `{run}` tries again"
    if cause in _CURES:
        return _CURES[cause]
    cap = (manifest.identity.get("model") or {}).get("max_output_tokens") if cause == "truncated" else None
    more = f" --set max_output_tokens={2 * cap}" if isinstance(cap, int) else ""
    return f"`{run} --retry {cause}{more}`{_cost(rows, 2 if more else 1) if manifest.kind == 'real' else ''}"


def _cost(rows: Sequence[Failure], times: int) -> str:
    known = [row.cost_usd for row in rows if row.cost_usd is not None]
    if len(known) < len(rows):
        return ""
    return f" costs {'at most ' if times > 1 else ''}about {money(times * sum(known))}"
