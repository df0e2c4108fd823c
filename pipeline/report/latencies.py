"""Quantiles of any number of latencies in bounded memory: a histogram whose bins grow by 2 %."""

from collections import Counter
from dataclasses import dataclass, field
from math import ceil, exp, log

import polars as pl

WIDTH = log(1.02)
"""A latency is told as the middle of its bin, so at most 1 % off."""
SHORTEST_S, LONGEST_S = 1e-6, 1e9
"""What is beyond is counted as these: so there are 1,745 bins at most."""


@dataclass(frozen=True, slots=True)
class Latencies:
    """Latencies in seconds, of which only their number by bin is kept."""

    bins: Counter[int] = field(default_factory=Counter)

    def add(self, seconds: pl.Series) -> None:
        """Count these; what is no number is left out."""
        known = seconds.cast(pl.Float64).drop_nulls().drop_nans().clip(SHORTEST_S, LONGEST_S)
        for number, count in (known.log() / WIDTH).floor().cast(pl.Int64).value_counts().iter_rows():
            self.bins[number] += count

    def quantile(self, share: float) -> float | None:
        """The latency that `share` of them do not exceed, at most 1 % off; None without any."""
        wanted = max(1, ceil(share * self.bins.total()))
        for number in sorted(self.bins):
            wanted -= self.bins[number]
            if wanted <= 0:
                return exp((number + 0.5) * WIDTH)
        return None
