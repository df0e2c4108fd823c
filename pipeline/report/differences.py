"""What differs between two runs: settings, what they came to, and the answers of rows that both have.

Of each row a few hashes are in memory; answers are read when they are asked for. Two runs of a million rows took 6 s
and 400 MB (2026-11).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import polars as pl

from pipeline.redaction import Hidden, Redactor
from pipeline.report import Summary, summarize
from pipeline.report.reading import Answers, shown
from pipeline.store import digests
from pipeline.store.manifest import Manifest
from pipeline.terminal import KEY_SHAPED

DIFF_KEYS: Mapping[str, str] = {
    "runs": "the two run directories; of every pair the first is the older, or the one that was named first",
    "generations": "their numbers",
    "rehearsals": "whether the emulator answered",
    "tables_differ": "whether the input is another, or has changed",
    "settings": "each that differs and can change an answer: `setting`, `old` and `new`; null where it is not set",
    "rows": "rows with an outcome",
    "outcomes": "rows by status and cause",
    "pending": "rows of the table that have no outcome so far",
    "paid_usd": "what each run paid itself, without what an earlier generation or another row had bought; null where a"
    " price is unknown",
    "seconds": "how long each took",
    "matched_by": "how rows were found in both: `id`, `table` (by number: it is the same table), `content`, or `number`"
    " (neither was possible: one number may be of two rows)",
    "same": "rows with the same answer and outcome in both",
    "changed": "rows whose answer or outcome differs",
    "new": "rows with an outcome in the second only",
    "gone": "rows with an outcome in the first that are not in the second's table",
    "not_reached": "the same of rows that are in its table, and have no outcome there so far",
    "input_tokens": "of all calls of the rows that both have, whoever paid",
    "output_tokens": "likewise, with thinking",
    "answers_usd": "likewise what they cost; null where a price is unknown",
    "moved": "of the rows in both: outcome in the first, outcome in the second, how many",
}
"""The keys of the first line of `diff --json`; these keys stay. A line for each row that is shown follows."""

Change = Literal["changed", "new", "gone"]
MatchedBy = Literal["id", "table", "content", "number"]

_READ = (
    *("row", "key", "status", "response", "error_kind", "finish_reason"),
    *("input_tokens", "output_tokens", "thinking_tokens", "cost_usd"),
)
_SUMMED = ("input_tokens", "output_tokens", "usd")
_UNKNOWN = (pl.col("usd").null_count().alias("unknown"), pl.col("usd_old").null_count().alias("unknown_old"))
_TOGETHER = 64
"""Rows whose answers are read at a time."""
_GROUPS = 16
"""Rows are looked for in groups, by the hash of what they are found by: to join all at once took twice the memory."""
_CHANGE = (
    pl.when(pl.col("row_old").is_null())
    .then(pl.lit("new"))
    .when(pl.col("row").is_null())
    .then(pl.lit("gone"))
    .when((pl.col("answer") == pl.col("answer_old")) & (pl.col("outcome") == pl.col("outcome_old")))
    .then(pl.lit("same"))
    .otherwise(pl.lit("changed"))
)


@dataclass(frozen=True, slots=True)
class Setting:
    """One that differs; a value is None where it is not set."""

    name: str
    old: object
    new: object


@dataclass(frozen=True, slots=True)
class Row:
    """A row whose answers differ, or that one of the runs has not: what both runs have of it, by `reading.ROW`."""

    change: Change
    old: Mapping[str, Any] | None
    new: Mapping[str, Any] | None
    has_changed: bool | None  # what the job uses of the row; None: nobody knows

    def as_json(self) -> dict[str, Any]:
        """As `diff --json` has it."""
        sides = {name: None if side is None else shown(side) for name, side in (("old", self.old), ("new", self.new))}
        return {"change": self.change, "row_changed": self.has_changed, **sides}


@dataclass(frozen=True)
class Side:
    """One of the two runs: what all its rows came to."""

    summary: Summary
    answers: Answers
    rows: pl.DataFrame  # a line for each row with an outcome: see `_side`

    @property
    def manifest(self) -> Manifest:
        """What the run belongs to."""
        return self.summary.manifest

    @property
    def directory(self) -> Path:
        """Where it lies."""
        return self.summary.directory

    @cached_property
    def outcomes(self) -> dict[str, int]:
        """Rows by status and cause."""
        counted = self.rows.group_by("outcome").len().sort("len", "outcome", descending=[True, False])
        return {str(name): int(number) for name, number in counted.iter_rows()}


class Sums(NamedTuple):
    """Of the rows that both runs have, what one of them took."""

    input_tokens: int
    output_tokens: int  # with thinking
    usd: float | None  # None: a price is unknown


@dataclass(frozen=True, slots=True)
class Matched:
    """The rows of both runs."""

    by: MatchedBy
    same: int
    differing: pl.DataFrame  # all others: `change`, `row`, `row_old`, both outcomes, `has_changed`
    sums: tuple[Sums, Sums]


class Comparison:
    """Two run directories side by side, as they are when this is made; reads only."""

    def __init__(self, old: Path, new: Path) -> None:
        """Raises `RunStateError` for a directory that is none of a run, or damaged."""
        self.old, self.new = _side(old), _side(new)
        self._hide = _hiding(self.old.manifest, self.new.manifest)
        self.tables_differ = not _same_table(self.old.manifest, self.new.manifest)
        self.matched = _matched(self.old, self.new)

    @cached_property
    def settings(self) -> tuple[Setting, ...]:
        """Those that differ, in the order of the job file's sections."""
        old, new = self.old.manifest, self.new.manifest
        found = [Setting("who answers", old.kind, new.kind)] if old.kind != new.kind else []
        for section in dict.fromkeys((*new.identity, *old.identity)):
            before, after = old.identity.get(section) or {}, new.identity.get(section) or {}
            found += [
                Setting(f"[{section}] {key}", self._plain(before.get(key)), self._plain(after.get(key)))
                for key in dict.fromkeys((*after, *before))
                if before.get(key) != after.get(key)
            ]
        versions = old.versions or {}, new.versions or {}
        found += [
            Setting(f"version of {name}", versions[0].get(name), versions[1].get(name))
            for name in dict.fromkeys((*versions[1], *versions[0]))
            if versions[0].get(name) != versions[1].get(name)
        ]
        return tuple(found)

    @cached_property
    def counts(self) -> dict[str, int]:
        """Rows by what became of them: `same`, `changed`, `new`, `gone` and `not_reached`."""
        counted = dict(self.matched.differing.group_by("change").len().iter_rows())
        others = {name: int(counted.get(name, 0)) for name in (*get_args(Change), "not_reached")}
        return {"same": self.matched.same, **others}

    @cached_property
    def moved(self) -> tuple[tuple[str, str, int], ...]:
        """Of the rows that both have: those with another outcome, by both."""
        both = self.matched.differing.filter(
            (pl.col("change") == "changed") & (pl.col("outcome") != pl.col("outcome_old"))
        )
        counted = both.group_by("outcome_old", "outcome").len().sort("len", "outcome_old", descending=[True, False])
        return tuple((str(before), str(after), int(number)) for before, after, number in counted.iter_rows())

    def differing(self) -> Iterator[Row]:
        """The rows that are not the same in both, in the order of the newer table, then those that are gone."""
        rows = self.matched.differing.filter(pl.col("change") != "not_reached")
        rows = rows.sort("row", "row_old", nulls_last=True)
        for some in rows.select("change", "row_old", "row", "has_changed").iter_slices(_TOGETHER):
            old, new = (
                self.old.answers.some(some["row_old"].drop_nulls()),
                self.new.answers.some(some["row"].drop_nulls()),
            )
            for change, before, after, has_changed in some.iter_rows():
                yield Row(change, self._hidden(old.get(before)), self._hidden(new.get(after)), has_changed)

    def as_json(self) -> dict[str, Any]:
        """What differs but for the rows, by `DIFF_KEYS`."""
        sides = self.old, self.new
        causes = dict.fromkeys((*self.old.outcomes, *self.new.outcomes))
        paid = [None if side.summary.unpriced else float(round(side.summary.cost_usd, 8)) for side in sides]
        return {
            "runs": [str(side.directory) for side in sides],
            "generations": [side.manifest.generation for side in sides],
            "rehearsals": [side.manifest.kind != "real" for side in sides],
            "tables_differ": self.tables_differ,
            "settings": [{"setting": each.name, "old": each.old, "new": each.new} for each in self.settings],
            "rows": [side.rows.height for side in sides],
            "outcomes": {cause: [side.outcomes.get(cause, 0) for side in sides] for cause in causes},
            "pending": [side.summary.pending for side in sides],
            "paid_usd": paid,
            "seconds": [round(side.summary.seconds, 1) for side in sides],
            "matched_by": self.matched.by,
            **self.counts,
            "input_tokens": [one.input_tokens for one in self.matched.sums],
            "output_tokens": [one.output_tokens for one in self.matched.sums],
            "answers_usd": [None if one.usd is None else round(one.usd, 8) for one in self.matched.sums],
            "moved": [list(each) for each in self.moved],
        }

    def _hidden(self, row: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        texts = ("key", "response", "error", "extras")
        return row and {name: self._hide(value) if value and name in texts else value for name, value in row.items()}

    def _plain(self, value: Any) -> Any:
        """A value of a setting without what must not be seen, at any depth."""
        if isinstance(value, str):
            return self._hide(value)
        if isinstance(value, Mapping):
            return {name: self._plain(each) for name, each in value.items()}
        return [self._plain(each) for each in value] if isinstance(value, list) else value


def _side(directory: Path) -> Side:
    summary = summarize(directory)
    answers = Answers(directory)
    cause = pl.when(pl.col("status") != "ok").then(pl.coalesce("error_kind", "finish_reason"))
    row = (
        pl.col("row").cast(pl.UInt32),
        pl.col("key").hash(),
        pl.col("response").hash().alias("answer"),
        pl.concat_str("status", cause, separator=" ", ignore_nulls=True).cast(pl.Categorical).alias("outcome"),
        pl.col("input_tokens").cast(pl.UInt32),
        (pl.col("output_tokens") + pl.col("thinking_tokens")).cast(pl.UInt32).alias("output_tokens"),
        pl.col("cost_usd").cast(pl.Float64).alias("usd"),
    )
    frames = (frame.select(row) for frame in answers.frames(_READ))
    return Side(summary, answers, pl.concat(frames, rechunk=True))


def _matched(old: Side, new: Side) -> Matched:
    kept, is_same_table = digests.pair(old.directory, new.directory), _same_table(old.manifest, new.manifest)
    by: MatchedBy = "number"
    name, nth, content = pl.col("row").cast(pl.UInt64), pl.lit(0, pl.UInt32), pl.lit(0 if is_same_table else None)
    if all(_has_ids(side.manifest) for side in (old, new)):
        by, name = "id", pl.col("key")
    elif is_same_table:
        by = "table"
    elif kept:
        by, name = "content", pl.col("content")
        nth = pl.int_range(pl.len(), dtype=pl.UInt32).over("content")  # those with the same content, in their order
    is_there = pl.lit(False)  # whether a row of the first is in the table of the second
    if kept and not is_same_table:
        contents = (some.select(content="hash", origin="key").with_row_index("row") for some in kept)
        sides = [side.rows.join(some, on="row", how="left") for side, some in zip((old, new), contents, strict=True)]
        is_there = pl.col("origin_old").is_in(kept[1]["key"].implode())
    else:
        sides = [side.rows.with_columns(content=content, origin=pl.lit(None, pl.UInt64)) for side in (old, new)]
        if is_same_table:
            is_there = pl.col("row_old") < new.summary.rows
    columns = ("row", "answer", "outcome", "content", "origin", *_SUMMED)
    sides = [side.sort("row").select(*columns, name=name, nth=nth) for side in sides]
    change = pl.when((_CHANGE == "gone") & is_there).then(pl.lit("not_reached")).otherwise(_CHANGE)
    same, differing, sums = 0, [], []
    for group in range(_GROUPS):
        before, after = (side.filter(pl.col("name").fill_null(0) % _GROUPS == group) for side in sides)
        joined = after.join(before, on=["name", "nth"], how="full", suffix="_old")
        both = joined.drop_nulls(["row", "row_old"])
        sums.append(both.select(pl.col(*_SUMMED, *(f"{each}_old" for each in _SUMMED)).sum(), *_UNKNOWN))
        joined = joined.with_columns(change=change, has_changed=pl.col("content") != pl.col("content_old"))
        others = joined.filter(pl.col("change") != "same")
        same += joined.height - others.height
        differing.append(others.select("change", "row", "row_old", "outcome", "outcome_old", "has_changed"))
    whole = pl.concat(sums).sum().row(0, named=True)
    return Matched(by, same, pl.concat(differing), (_sums(whole, "_old"), _sums(whole, "")))


def _sums(whole: Mapping[str, Any], end: str) -> Sums:
    usd = None if whole[f"unknown{end}"] else float(whole[f"usd{end}"])
    return Sums(int(whole[f"input_tokens{end}"]), int(whole[f"output_tokens{end}"]), usd)


def _has_ids(manifest: Manifest) -> bool:
    return (manifest.identity.get("input") or {}).get("id") is not None


def _same_table(old: Manifest, new: Manifest) -> bool:
    """Whether a row number is the same row in both."""
    where = [(manifest.identity.get("input") or {}).get("where") for manifest in (old, new)]
    return old.source == new.source and where[0] == where[1]


def _hiding(*manifests: Manifest) -> Callable[[str], str]:
    """What takes out of a text all that looks like a key, and what the job of either run does not send."""
    sections: Sequence[Mapping[str, Any]] = [manifest.identity.get("redact") or {} for manifest in manifests]
    kinds = tuple(dict.fromkeys(kind for section in sections for kind in section.get("kinds", ())))
    patterns = {item for section in sections for item in section.get("patterns", {}).items()}
    redactor = Redactor(kinds, tuple((name, re.compile(pattern)) for name, pattern in sorted(patterns)))

    def hide(text: str) -> str:
        plain = KEY_SHAPED.sub("…", text)
        return Hidden(redactor, (text,)).text(plain) if redactor.names else plain

    return hide
