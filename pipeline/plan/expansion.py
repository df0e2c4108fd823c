"""From the rows that were planned to all the rows that they stand for, with 95 % intervals where they are a sample."""

from math import sqrt

import polars as pl

from pipeline.calibration import t_quantile
from pipeline.plan.picks import Picks

_LEAST_FITTED = 5
"""Picked rows from which the amounts of a stratum are fitted to sizes."""


def weights(picks: Picks) -> pl.Series:
    """For how many rows of its stratum each picked row stands: for itself at least.

    Such that the rows come to those of the stratum and, from five picked rows on, their sizes nearly to its bytes: what
    is the same for every row is expanded without error, and what is proportional to the size nearly so (a regression
    estimator). Parts add up to their whole, and what is larger in every row is larger in total.
    """
    above, picked, rows = pl.col("above"), pl.len(), pl.col("rows").first()
    missing = pl.col("bytes").first() - rows * pl.col("size").mean()
    spare = rows / picked - 1  # of a row's weight: it stands for itself at least
    tilt = (missing / above.pow(2).sum()).clip(-spare / above.max(), -spare / above.min())  # for each byte above
    sloped = (above.pow(2).sum() > 0).over("stratum")
    weight = (rows / picked).over("stratum") + pl.when(sloped).then(tilt.over("stratum") * above).otherwise(0.0)
    return _placed(picks).select(weight=weight).to_series()


def half_widths(picks: Picks, amounts: pl.DataFrame) -> dict[str, float]:
    """Half the 95 % interval around the total of each column of `amounts`, one row a picked row.

    Of sampling alone: how well the amounts themselves are known is not in it. 0 when the picks are whole.
    """
    placed = _placed(picks)
    return {each.name: _half_width(_spreads(placed.with_columns(amount=each))) for each in amounts}


def _spreads(placed: pl.DataFrame) -> pl.DataFrame:
    """By stratum the variance of the amount between rows, of what its fit to sizes leaves of it, and its `freedom`.

    One picked row tells of none: it varies as the wider of its neighbours, relative to its size, or by all that it is.
    """
    amount, above, size = pl.col("amount"), pl.col("above"), pl.col("size").mean().clip(1)
    along = above.pow(2).sum()
    left = (amount - amount.mean()).pow(2).sum() - ((amount * above).sum().pow(2) / along).fill_nan(0.0)
    freedom = pl.len().cast(pl.Int64) - 1 - (along > 0).cast(pl.Int64)
    relative, known = pl.col("relative"), pl.col("freedom")
    return (
        placed.group_by("stratum")
        .agg(
            pl.col("rows").first(),
            picked=pl.len(),
            size=size,
            freedom=pl.when(pl.len() > 1).then(freedom),
            relative=pl.when(pl.len() > 1).then(left.clip(0) / freedom / size.pow(2)),
            itself=(amount.mean() / size).pow(2),
        )
        .sort("stratum")
        .with_columns(
            freedom=pl.coalesce(known, pl.min_horizontal(known.forward_fill(), known.backward_fill()), 1),
            relative=pl.coalesce(
                relative, pl.max_horizontal(relative.forward_fill(), relative.backward_fill()), "itself"
            ),
        )
        .select("rows", "picked", "freedom", spread=relative * pl.col("size").pow(2))
    )


def _half_width(strata: pl.DataFrame) -> float:
    rows, picked = pl.col("rows"), pl.col("picked")
    errors = strata.select("freedom", error=rows * (rows - picked) / picked * pl.col("spread"))
    variance = errors["error"].sum()
    # Satterthwaite's degrees of freedom: those of a sum of variances that are known unequally well.
    unequal = errors.select((pl.col("error") ** 2 / pl.col("freedom")).sum()).item()
    return t_quantile(variance**2 / unequal) * sqrt(variance) if variance else 0.0


def _placed(picks: Picks) -> pl.DataFrame:
    """Each picked row with its stratum's `rows` and `bytes`, and how much its size is `above` the mean of those picked.

    That is 0 where too few are picked to fit amounts to sizes.
    """
    schema = {"stratum": pl.UInt16, "rows": pl.Float64, "bytes": pl.Float64, "largest": pl.UInt32}
    strata = pl.DataFrame(list(picks.populations.values()), schema, orient="row", strict=False)
    mean = pl.col("size").mean()
    return (
        pl.DataFrame({"stratum": picks.strata, "size": picks.sizes.cast(pl.Float64)})
        .join(strata, on="stratum", maintain_order="left")
        .with_columns(
            above=pl.when(pl.len() >= _LEAST_FITTED).then(pl.col("size") - mean).otherwise(0.0).over("stratum")
        )
    )
