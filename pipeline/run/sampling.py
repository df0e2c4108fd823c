"""A sample of a job's rows: which they are, and how they were chosen.

Its rows are rows of the run: they are kept, and the run goes on from them. They are chosen of all rows by their
content, so the same rows come again after some of them were answered, rows were added, or the table was put in another
order; a larger sample has those of a smaller one.
"""

from dataclasses import dataclass, replace

import polars as pl

from pipeline.job import Job
from pipeline.plan.picks import pick_sample
from pipeline.plan.survey import Survey
from pipeline.run.prepare import Session


@dataclass(frozen=True, slots=True)
class Sample:
    """Row numbers, and for a person how they were chosen."""

    rows: frozenset[int]
    told: str


def sample(found: Survey, number: int) -> Sample:
    """So many rows, spread over kinds of script and lengths; fewer where no more differ and are sent."""
    numbers = pick_sample(found, None, number).numbers
    if numbers.is_empty():
        return Sample(frozenset(), "none is sent")
    seen = found.at(numbers.cast(pl.UInt32).sort())
    kinds, sizes = seen["kind"].n_unique(), sorted(seen["size"].to_list())
    scripts = "1 kind of script" if kinds == 1 else f"{kinds} kinds of script"
    lengths = f"{sizes[0]:,} to {sizes[-1]:,} bytes" if sizes[0] != sizes[-1] else f"{sizes[0]:,} bytes"
    return Sample(frozenset(numbers), f"{scripts}, {lengths} long, chosen by content")


def sampled(session: Session, found: Survey, number: int) -> Session:
    """The session that does these rows, and no others; they are asked at once, in the standard lane."""
    chosen = sample(found, number)
    has_lanes = any(each.choice != "standard" for each in session.job.asked)
    told = f"{chosen.told}; in the standard lane, to be there soon" if has_lanes else chosen.told
    options = replace(session.options, pilot=chosen.rows, sampled=told)
    return replace(session, job=_at_once(session.job), options=options)


def _at_once(job: Job) -> Job:
    spec = job.spec
    targets = [target.model_copy(update={"lane": "standard"}) for target in spec.target]
    model = spec.model.model_copy(update={"lane": "standard"})
    return replace(job, spec=spec.model_copy(update={"model": model, "target": targets}))
