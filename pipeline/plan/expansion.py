"""From the rows that were planned to all the rows that they stand for, with 95 % intervals where they are a sample."""

from math import sqrt

import polars as pl

from pipeline.calibration import t_quantile
from pipeline.plan.picks import Picks


def weights(picks: Picks) -> pl.Series:
    """For how many rows of its stratum each picked row stands: 1 where all of them are picked.

    What is the same for every row is expanded without error, parts add up to their whole, and what is larger in every
    row is larger in total. Amounts are not fitted to sizes within a stratum: that told the tokens of 40,000 rows from
    8,000 to 0.16 instead of 0.21 %, but calls of 1,200 short texts from 250 to 4.2 instead of 2.8 % (root mean squares,
    2026-11), and intervals held less often.
    """
    rows = pl.col("stratum").replace_strict({number: stratum.rows for number, stratum in picks.populations.items()})
    return pl.DataFrame({"stratum": picks.strata}).select(rows / pl.len().over("stratum")).to_series()


def half_widths(picks: Picks, amounts: pl.DataFrame) -> dict[str, float]:
    """Half the 95 % interval around the total of each column of `amounts`, one row a picked row.

    Of sampling alone: how well the amounts themselves are known is not in it. 0 when the picks are whole.
    """
    strata = picks.populations.values()
    populations = pl.DataFrame(
        {
            "stratum": pl.Series([each.number for each in strata], dtype=pl.UInt16),
            "rows": pl.Series([each.rows for each in strata], dtype=pl.Float64),
            "size": pl.Series([max(1.0, each.size_bytes / each.rows) for each in strata], dtype=pl.Float64),
        }
    )
    grouped = amounts.with_columns(stratum=picks.strata).group_by("stratum")
    return {name: _half_width(grouped.agg(**_told(name)).join(populations, on="stratum")) for name in amounts.columns}


def _told(name: str) -> dict[str, pl.Expr]:
    """What the picked rows of a stratum tell: of its variance nothing, where there is one."""
    amount, picked = pl.col(name), pl.len()
    return {
        "picked": picked,
        "itself": amount.mean().pow(2),
        "spread": amount.var(),
        "freedom": pl.when(picked > 1).then(picked - 1),
    }


def _half_width(strata: pl.DataFrame) -> float:
    """One picked row varies as the wider of its neighbours, relative to its size, or, alone, by all that it is."""
    rows, picked, size, freedom = (pl.col(name) for name in ("rows", "picked", "size", "freedom"))
    relative = pl.col("spread") / size.pow(2)
    near = pl.max_horizontal(relative.forward_fill(), relative.backward_fill()) * size.pow(2)
    errors = strata.sort("stratum").select(
        variance=rows * (rows - picked) / picked * pl.coalesce("spread", near, "itself"),
        freedom=pl.coalesce(freedom, pl.min_horizontal(freedom.forward_fill(), freedom.backward_fill()), 1),
    )
    variance = errors["variance"].sum()
    # Satterthwaite's degrees of freedom: those of a sum of variances that are known unequally well.
    unequal = errors.select((pl.col("variance") ** 2 / pl.col("freedom")).sum()).item()
    return t_quantile(variance**2 / unequal) * sqrt(variance) if unequal else 0.0
