"""What differs between two runs: settings, what they came to, and the answers of rows that both have.

Of each row a few hashes are in memory; answers are read when they are asked for. Two runs of a million rows took 6 s
and 300 MB (2026-11).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

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
    "input_tokens": "of all calls of these rows, whoever paid",
    "output_tokens": "likewise, with thinking",
    "answers_usd": "likewise what they cost; null where a price is unknown",
    "paid_usd": "what each run paid itself, without what an earlier generation or another row had bought",
    "seconds": "how long each took",
    "not_reached": "rows of its table that have no outcome so far",
    "matched_by": "how rows were found in both: `id`, `table` (by number: it is the same table), `content`, or `number`"
    " (neither was possible: one number may be of two rows)",
    "same": "rows with the same answer and outcome in both",
    "changed": "rows whose answer or outcome differs",
    "new": "rows with an outcome in the second only",
    "gone": "rows with an outcome in the first only",
    "moved": "of the rows in both: outcome in the first, outcome in the second, how many",
}
"""The keys of the first line of `diff --json`; these keys stay. A line for each row that is shown follows."""

Change = Literal["changed", "new", "gone"]
MatchedBy = Literal["id", "table", "content", "number"]

_READ = ("row", "key", "status", "response", "error_kind", "finish_reason", "cost_usd")
_TOKENS = ("input_tokens", "output_tokens", "thinking_tokens")
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
    .cast(pl.Categorical)
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
    rows: pl.DataFrame  # a line for each row with an outcome: `row`, hashes of its `key` and `answer`, `outcome`
    input_tokens: int
    output_tokens: int  # with thinking
    usd: Decimal | None  # None: a price is unknown

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


class Comparison:
    """Two run directories side by side, as they are when this is made; reads only."""

    def __init__(self, old: Path, new: Path) -> None:
        """Raises `RunStateError` for a directory that is none of a run, or damaged."""
        self.old, self.new = _side(old), _side(new)
        self._hide = _hiding(self.old.manifest, self.new.manifest)
        self.tables_differ = not _same_table(self.old.manifest, self.new.manifest)
        self.matched_by, self._same, self._pairs = _matched(self.old, self.new)

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
        """Rows that are `same`, `changed`, `new` and `gone`."""
        counted = {"same": self._same, **dict(self._pairs.group_by("change").len().iter_rows())}
        return {name: int(counted.get(name, 0)) for name in ("same", "changed", "new", "gone")}

    @cached_property
    def moved(self) -> tuple[tuple[str, str, int], ...]:
        """Of the rows that both have: those with another outcome, by both."""
        both = self._pairs.filter((pl.col("change") == "changed") & (pl.col("outcome") != pl.col("outcome_old")))
        counted = both.group_by("outcome_old", "outcome").len().sort("len", "outcome_old", descending=[True, False])
        return tuple((str(before), str(after), int(number)) for before, after, number in counted.iter_rows())

    def differing(self) -> Iterator[Row]:
        """The rows that are not the same in both, in the order of the newer table, then those that are gone."""
        rows = self._pairs.sort("row", "row_old", nulls_last=True)
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
        usd = [side.usd if side.usd is None else float(side.usd) for side in sides]
        paid = [None if side.summary.unpriced else float(round(side.summary.cost_usd, 8)) for side in sides]
        return {
            "runs": [str(side.directory) for side in sides],
            "generations": [side.manifest.generation for side in sides],
            "rehearsals": [side.manifest.kind != "real" for side in sides],
            "tables_differ": self.tables_differ,
            "settings": [{"setting": each.name, "old": each.old, "new": each.new} for each in self.settings],
            "rows": [side.rows.height for side in sides],
            "outcomes": {cause: [side.outcomes.get(cause, 0) for side in sides] for cause in causes},
            "input_tokens": [side.input_tokens for side in sides],
            "output_tokens": [side.output_tokens for side in sides],
            "answers_usd": usd,
            "paid_usd": paid,
            "seconds": [round(side.summary.seconds, 1) for side in sides],
            "not_reached": [side.summary.pending for side in sides],
            "matched_by": self.matched_by,
            **self.counts,
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
    )
    tokens, usd, frames = dict.fromkeys(_TOKENS, 0), Decimal(0), []
    unpriced = 0
    for frame in answers.frames((*_READ, *_TOKENS)):
        frames.append(frame.select(row))
        for name in _TOKENS:
            tokens[name] += int(frame[name].sum())
        usd += Decimal(frame["cost_usd"].sum())
        unpriced += frame["cost_usd"].null_count()
    output = tokens["output_tokens"] + tokens["thinking_tokens"]
    return Side(summary, answers, pl.concat(frames), tokens["input_tokens"], output, None if unpriced else usd)


def _matched(old: Side, new: Side) -> tuple[MatchedBy, int, pl.DataFrame]:
    """How rows were found in both, how many are the same, and a line for each that is not.

    Its columns are `change`, `row`, `row_old`, the outcomes, and `has_changed`.
    """
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
    sides = [side.rows.with_columns(content=content) for side in (old, new)]
    if kept and not is_same_table:
        contents = (some.select(content="hash").with_row_index("row") for some in kept)
        sides = [side.rows.join(some, on="row", how="left") for side, some in zip((old, new), contents, strict=True)]
    sides = [side.sort("row").select("row", "answer", "outcome", "content", name=name, nth=nth) for side in sides]
    same, found = 0, []
    for group in range(_GROUPS):
        before, after = (side.filter(pl.col("name").fill_null(0) % _GROUPS == group) for side in sides)
        joined = after.join(before, on=["name", "nth"], how="full", suffix="_old")
        joined = joined.with_columns(change=_CHANGE, has_changed=pl.col("content") != pl.col("content_old"))
        differing = joined.filter(pl.col("change") != "same")
        same += joined.height - differing.height
        found.append(differing.select("change", "row", "row_old", "outcome", "outcome_old", "has_changed"))
    return by, same, pl.concat(found)


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
