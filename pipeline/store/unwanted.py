"""Which answers of a run directory `--retry` asks for again: those of rows whose newest outcome will not do.

An answer that would not do, and that another target's took the place of, is none of these: its row is well.
"""

from collections.abc import Collection

import polars as pl

from pipeline.records import JUDGED
from pipeline.store.judged import Judged, gave_judged, judged_of

OUTCOME_COLUMNS = ("row", "status", "error_kind", "response")
CALL_COLUMNS = ("row", "fingerprint", "paid", "status", "error_kind")
_JUDGED = {"judged": pl.Int64, "length": pl.Int64}
_IS_OK = pl.col("status") == "ok"


class Unwanted:
    """The rows of one directory with one of these statuses or causes; what an answer that was judged is known by."""

    def __init__(self, kinds: Collection[str]) -> None:
        self._is_asked = pl.col("status").is_in(kinds) | pl.col("error_kind").is_in(kinds).fill_null(False)
        self._rows = pl.DataFrame(schema={"row": pl.Int64, **_JUDGED})

    def take_in(self, outcomes: pl.DataFrame) -> None:
        """The outcomes of one part more, later than those before; it has the columns of `OUTCOME_COLUMNS`."""
        found = outcomes.filter(self._is_asked)
        judged = found.filter(pl.col("error_kind").is_in(JUDGED))
        known = pl.DataFrame([judged_of(each) for each in judged["response"]], schema=_JUDGED, orient="row")
        found = found.select("row").join(
            pl.concat([judged.select("row"), known], how="horizontal"), on="row", how="left"
        )
        before = self._rows.filter(~pl.col("row").is_in(outcomes["row"].implode()))
        self._rows = pl.concat([before, found])

    def among(self, calls: pl.DataFrame) -> pl.DataFrame:
        """The `fingerprint` of each of these calls that is asked for again, and whether it is `ok`, but judged.

        `calls` has the columns of `CALL_COLUMNS` and a `text`, null where it is the answer of its row.
        """
        of_rows = calls.filter("paid").join(self._rows, on="row")
        known = of_rows.select("status", "text", *_JUDGED).iter_rows()
        is_judged = pl.Series(
            [
                status == "ok" and found is not None and (text is None or gave_judged(text, Judged(found, length)))
                for status, text, found, length in known
            ],
            dtype=pl.Boolean,
        )
        return of_rows.filter(self._is_asked | is_judged).select("fingerprint", _IS_OK.alias("ok"))

    def among_unfinished(self, calls: pl.DataFrame) -> pl.DataFrame:
        """As `among`, of rows without an outcome: by what became of each call."""
        return calls.filter(pl.col("paid") & self._is_asked).select("fingerprint", _IS_OK.alias("ok"))
