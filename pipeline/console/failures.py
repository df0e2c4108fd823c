"""Rows that are not ok: how many for which cause, what helps against it and costs, then the rows."""

from collections.abc import Mapping, Sequence
from decimal import Decimal

from rich.cells import cell_len

from pipeline.console.screen import Screen, count, money, out, show_grid
from pipeline.language import Data, spoken
from pipeline.report import Failure
from pipeline.report.causes import Cause, Cure, by_cause, cure_of
from pipeline.store.manifest import Manifest

_MOST_FAILURES = 50


def show_failures(failures: Sequence[Failure], manifest: Manifest, numbers: Mapping[int, int]) -> None:
    """The rows without a whole answer, by cause and one by one; `numbers` are theirs in the input, where known."""
    if not failures:
        out.print("every row that was reached is ok")
        return
    show_causes(by_cause((each.error_kind or each.status, _exact(each.cost_usd)) for each in failures), manifest)
    out.print()
    differ = any(row != number for row, number in numbers.items())
    lines = []
    for failure in failures[:_MOST_FAILURES]:
        told = map(Data, (failure.key, failure.status, failure.error_kind or "", spoken(failure.error or "")))
        number = [str(numbers.get(failure.row, "?"))] if differ else []
        lines.append((str(failure.row), *number, *told))
    show_grid(("row", *(["input row"] if differ else []), "id", "status", "cause", "what happened"), lines)
    if len(failures) > _MOST_FAILURES:
        out.print(f"… and {len(failures) - _MOST_FAILURES:,} more: `--json` lists all", style="dim")


def show_causes(causes: Sequence[Cause], manifest: Manifest, to: Screen = out) -> None:
    """How many rows are not ok for which cause, and what helps them."""
    lines = [(Data(f"  {each.cause}"), count(each.rows), _told(cure_of(each, manifest))) for each in causes]
    beside = sum(max((cell_len(line[at]) for line in lines), default=0) for at in (0, 1)) + 6
    if not to.is_terminal or beside + max((cell_len(line[2]) for line in lines), default=0) <= to.width:
        show_grid(("  cause", "rows", "what helps"), lines, to)
        return
    for cause, rows, cure in lines:  # beside them a command would be cut in two
        to.print(Data(f"{cause}  {rows}"))
        to.print(f"    {cure}", indent=4)


def _told(cure: Cure) -> str:
    cost = "" if cure.usd is None else f" costs {'at most ' if cure.is_at_most else ''}about {money(cure.usd)}"
    return Data(f"{spoken(cure.words)}{spoken(cost)}")


def _exact(usd: float | None) -> Decimal | None:
    return None if usd is None else Decimal(str(usd))
