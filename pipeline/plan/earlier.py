"""What is on disk of answers like those to come: of this run so far, and of earlier runs of the same model.

Input teaches from any run that asked the same: the step's template and system instruction. Answers teach only where
everything that may change their length was the same too. Reads only, also from runs that go on meanwhile.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from pipeline.errors import PipelineError
from pipeline.job import Job
from pipeline.places import Kind, run_directory
from pipeline.plan.learned import CALL_COLUMNS, THIS_RUN, TOOL_COLUMNS, Learned, learn, merged
from pipeline.records import LATER, STEPS, Reply, Step
from pipeline.store import batch_states, batched, parts
from pipeline.store.manifest import read as read_manifest
from pipeline.store.state import load_unsealed
from pipeline.store.units import units

MOST_CALLS = 200_000
"""Newest calls that are read over all runs: some 0.5 s."""

_UNREADABLE = (PipelineError, OSError, pl.exceptions.PolarsError, ValueError, TypeError, LookupError, AttributeError)
_COLUMNS = (*CALL_COLUMNS, *TOOL_COLUMNS)
_READ = (*_COLUMNS, "lane")
_ONLY_LENGTHS = _COLUMNS[_COLUMNS.index("cached_tokens") :]
_WITH_SECTION = frozenset({"reduce", "refine"})
"""Steps that a section of the job file asks for, by its name."""


@dataclass(frozen=True, slots=True)
class _Run:
    directory: Path
    created_at: str
    inputs: frozenset[str]  # steps whose input teaches
    lengths: frozenset[str]  # steps whose answers teach
    same_rows: bool  # its row numbers are those of the table that is planned
    own: bool  # the run that is planned, as far as it went


def earlier(
    runs: Path,
    job: Job,
    kind: Kind,
    source_fingerprint: str,
    about: Callable[[pl.Series], pl.DataFrame],
    most: int = MOST_CALLS,
) -> Learned:
    """What the newest `most` calls under `runs` teach for `job`; of its own run first, however old.

    `about` tells of the rows of the table with that fingerprint, as `learn` takes it. Only runs of
    the same `kind` teach: a rehearsal says nothing of the service. What cannot be read is passed over: it must not keep
    anybody from a plan.
    """
    sources: list[Learned] = []
    for run in _alike(runs, job, kind, source_fingerprint):
        if most <= 0:
            break
        try:
            calls, changed = _read(run.directory, most)
        except _UNREADABLE:
            continue
        most -= calls.height
        number = THIS_RUN if run.own else 1 + len(sources)
        sources.append(learn(_teaching(run, calls, changed), about if run.same_rows else None, number))
    return merged(*sources)


def _alike(runs: Path, job: Job, kind: Kind, source_fingerprint: str) -> list[_Run]:
    """Runs that can teach anything: the job's own, then the newest first."""
    own, found = runs / run_directory(job.name, kind).name, []
    for path in runs.glob("*/manifest.json"):
        try:
            manifest = read_manifest(path)
            if manifest is None or manifest.kind != kind or manifest.model != job.model:
                continue
            inputs, lengths = _taught(manifest.identity, job.identity)
            same_rows = manifest.source == source_fingerprint and _where(manifest.identity) == _where(job.identity)
        except _UNREADABLE:
            continue
        is_own = path.parent == own and same_rows and manifest.identity == job.identity
        if inputs:
            found.append(_Run(path.parent, str(manifest.created_at), inputs, lengths, same_rows, is_own))
    return sorted(found, key=lambda run: (run.own, run.created_at), reverse=True)


def _taught(its: Mapping[str, Any], ours: Mapping[str, Any]) -> tuple[frozenset[str], frozenset[str]]:
    """Steps that were asked the same, and of these the steps whose answers may be as long as ours."""
    inputs = {step for step in STEPS if _words(ours, step) and _words(its, step) == _words(ours, step)}
    return frozenset(inputs), frozenset(step for step in inputs if _bounds(its, step) == _bounds(ours, step))


def _words(identity: Mapping[str, Any], step: Step) -> object:
    """Template, system instruction and what else all prompts of a step say; None for a step that the job has not."""
    prompt, schema, later = identity["prompt"], identity.get("output"), identity.get(step)
    if step not in _WITH_SECTION:
        return prompt, schema
    return (later["template"], later.get("system", prompt["system"]), schema) if later else None


def _bounds(identity: Mapping[str, Any], step: Step) -> tuple[object, ...]:
    """What else the length of an answer depends on; that of a later call on the answers that it holds."""
    model = {key: value for key, value in identity["model"].items() if key != "name"}
    later = (identity.get(step), _words(identity, "map")) if step in LATER else ()
    return model, identity.get("tools"), identity.get("chunk"), *later


def _where(identity: Mapping[str, Any]) -> object:
    """Which rows of the table are numbered."""
    return identity["input"].get("where")


def _read(directory: Path, most: int) -> tuple[pl.DataFrame, set[int]]:
    """The newest calls of a run, and those of their rows that were asked another way: redone with `--set`.

    A shard that cannot be read, as one that lies elsewhere, is passed over.
    """
    frames, changed = [_own(parts.calls_frame([], {}))], set[int]()
    for unit in reversed(units(directory)):
        if most <= 0:
            break
        try:
            calls, redone = _read_unit(unit.directory, most)
        except _UNREADABLE:
            continue
        most -= calls.height
        frames.append(calls.with_columns(pl.col("row") + unit.first_row))
        changed.update(unit.first_row + row for row in redone)
    return pl.concat(frames), changed


def _read_unit(directory: Path, most: int) -> tuple[pl.DataFrame, set[int]]:
    """The same of a directory with calls of its own."""
    unsealed = load_unsealed(directory, lambda raw, endpoint: Reply("", "ok"))
    changed = {row for row, result in unsealed.results.items() if result.changes is not None}
    batches = batch_states.read(directory)
    asked_so = {number: state for number, state in batches.items() if state.changes is None}
    sealed = [path for path in parts.part_paths(directory / "calls") if parts.part_number(path) <= unsealed.sealed]
    frames = [_own(parts.calls_frame(unsealed.calls, {}))]
    for path in (*reversed(sealed), *reversed(batched.part_paths(directory, asked_so))):
        if sum(frame.height for frame in frames) >= most:
            break
        frames.append(_own(parts.read_part(path, (*_READ, "generation"))))
        if path.parent.name == "calls":
            results = parts.read_part(
                parts.part_path(directory / "results", parts.part_number(path)), ("row", "changes")
            )
            changed.update(results.filter(pl.col("changes").is_not_null())["row"])
    calls = pl.concat(frames).head(most)
    return calls.with_columns(pl.when(pl.col("lane") != "batch").then("latency_s").alias("latency_s")), changed


def _own(calls: pl.DataFrame) -> pl.DataFrame:
    """Without what earlier generations bought: they teach it themselves."""
    return calls.filter(parts.IS_BOUGHT).select(_READ)


def _teaching(run: _Run, calls: pl.DataFrame, changed: set[int]) -> pl.DataFrame:
    """The calls that teach, those of steps with other answers without what they took."""
    its_lengths = pl.col("step").is_in(run.lengths)
    return calls.filter(pl.col("step").is_in(run.inputs), ~pl.col("row").is_in(changed)).with_columns(
        pl.when(its_lengths).then(name).alias(name) for name in _ONLY_LENGTHS
    )
