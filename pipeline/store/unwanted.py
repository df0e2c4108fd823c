"""Which answers of a run directory `--retry` asks for again: those of rows whose newest outcome will not do.

An answer that would not do, and that another target's took the place of, is none of these: its row is well.
"""

from collections.abc import Collection

import polars as pl

from pipeline.records import JUDGED

OUTCOME_COLUMNS = ("row", "status", "error_kind", "response")
CALL_COLUMNS = ("row", "fingerprint", "paid", "status", "error_kind")
_IS_OK = pl.col("status") == "ok"


class Unwanted:
    """The rows of one directory with one of these statuses or causes; of an answer that was judged its text, hashed."""

    def __init__(self, kinds: Collection[str]) -> None:
        self._is_asked = pl.col("status").is_in(kinds) | pl.col("error_kind").is_in(kinds).fill_null(False)
        self._rows = pl.DataFrame(schema={"row": pl.Int64, "judged": pl.UInt64})

    def take_in(self, outcomes: pl.DataFrame) -> None:
        """The outcomes of one part more, later than those before; it has the columns of `OUTCOME_COLUMNS`."""
        judged = pl.when(pl.col("error_kind").is_in(JUDGED)).then(pl.col("response").hash())
        found = outcomes.filter(self._is_asked).select("row", judged.alias("judged"))
        before = self._rows.filter(~pl.col("row").is_in(outcomes["row"].implode()))
        self._rows = pl.concat([before, found])

    def among(self, calls: pl.DataFrame) -> pl.DataFrame:
        """The `fingerprint` of each of these calls that is asked for again, and whether it is `ok`, but judged.

        `calls` has the columns of `CALL_COLUMNS` and a `text`, null where it is the answer of its row.
        """
        is_judged = _IS_OK & (pl.col("text").is_null() | (pl.col("text").hash() == pl.col("judged")))
        of_rows = calls.filter("paid").join(self._rows, on="row")
        wanting = of_rows.filter(self._is_asked | (pl.col("judged").is_not_null() & is_judged))
        return wanting.select("fingerprint", _IS_OK.alias("ok"))

    def among_unfinished(self, calls: pl.DataFrame) -> pl.DataFrame:
        """As `among`, of rows without an outcome: by what became of each call."""
        return calls.filter(pl.col("paid") & self._is_asked).select("fingerprint", _IS_OK.alias("ok"))
