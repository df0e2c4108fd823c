"""Plans of small tables, for tests."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import anyio
import polars as pl
from asking import ask

from pipeline import plan
from pipeline.job import Job
from pipeline.plan import amounts
from pipeline.plan.learned import CALL_COLUMNS, NOTHING, Learned, learn
from pipeline.plan.pace import Pace
from pipeline.plan.picks import Effort
from pipeline.plan.planner import USUAL, Input
from pipeline.plan.survey import survey
from pipeline.prompts import Params, Prompt
from pipeline.records import Document, Reply, Step
from pipeline.source import open_source

START = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
LATENCY_S = 5.0


def texts(lengths: Sequence[int]) -> list[Document]:
    """Documents of so many characters each, without a sentence in common."""
    return [
        Document(row, str(row), {}, " ".join(f"Row {row} says {n} here." for n in range(length // 16 + 1))[:length])
        for row, length in enumerate(lengths)
    ]


def topics(number: int) -> list[Document]:
    """Documents without a text, all different."""
    return [Document(row, str(row), {"topic": f"number {row}"}) for row in range(number)]


def given(
    job: Job,
    documents: Sequence[Document],
    done: Callable[[int], bool] | None = None,
    learned: Learned = NOTHING,
    bought: plan.Bought | None = None,
    effort: Effort = USUAL,
) -> Input:
    """The documents as a table beside the job file, looked over."""
    path = job.path.parent / f"table-{len(documents)}.parquet"
    text = job.spec.input.text
    frame = pl.DataFrame([{**each.fields, **({text: each.text} if text else {})} for each in documents])
    if not documents:
        frame = pl.DataFrame(schema=dict.fromkeys((*job.columns, *([text] if text else [])), pl.String))
    frame.write_parquet(path)
    source = open_source(str(path), text=text, columns=job.columns)
    wanted = pl.Series([not done(row) for row in range(len(documents))], dtype=pl.Boolean) if done else None
    found = survey(source, len(documents))
    return Input(job, source, found, learned, bought or nothing_bought, Pace(job.limits, LATENCY_S), wanted, effort)


def telling(kinds: Sequence[int], strata: Sequence[int | None] | None = None) -> Callable[[pl.Series], pl.DataFrame]:
    """What `learn` asks about rows of a table with these kinds and strata."""
    stratum = pl.Series("stratum", strata or [None] * len(kinds), dtype=pl.UInt16)
    table = pl.DataFrame([pl.Series("kind", kinds, dtype=pl.UInt8), stratum]).with_row_index("row")
    told = table.with_columns(pl.col("row").cast(pl.Int64), rows=pl.len().over("stratum"))
    return lambda rows: told.filter(pl.col("row").is_in(rows.implode()))


async def nothing_bought(prompt: Prompt) -> Reply | None:
    return None


def make(
    job: Job,
    documents: Sequence[Document],
    done: Callable[[int], bool] | None = None,
    learned: Learned = NOTHING,
    start: datetime = START,
    bought: plan.Bought = nothing_bought,
    effort: Effort = USUAL,
) -> plan.Plan:
    """The plan of a run over the documents that are not done."""
    return anyio.run(plan.make, given(job, documents, done, learned, bought, effort), start)


def known(*answers: tuple[str, int, int, int, int]) -> Learned:
    """What answers of (step, estimated, input, output, thinking) teach, a tenth of the input cached."""
    rows = [
        dict(zip(CALL_COLUMNS, (row, step, True, False, given, real, real // 10, out, thought, 1.0), strict=True))
        for row, (step, given, real, out, thought) in enumerate(answers)
    ]
    return learn(pl.DataFrame(rows), telling([0] * len(rows)))


def prompt(step: Step = "answer", bound: int | None = 100, name: int = 0) -> Prompt:
    """A prompt of 60 tokens whose fingerprint is `name`."""
    params = Params(max_output_tokens=bound)
    return ask(text="words", step=step, params=params, tokens=60, fingerprint=f"{name:032x}")


def kind_of(text: str) -> int:
    """Kind of a text, as index into `KINDS`; the empty text is ascii."""
    if text.isascii():
        return 0
    return 1 + bisect_right(amounts._KIND_FROM, len(text.encode("utf-8", "surrogatepass")) / len(text))
