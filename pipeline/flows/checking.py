"""Whether the templates work on the rows, before anything is asked."""

from collections.abc import Iterable

from pipeline.errors import JobError
from pipeline.flows.base import BLANK, Unrendered
from pipeline.flows.conversation import turns_of
from pipeline.flows.opening import opening
from pipeline.flows.redacting import redacted
from pipeline.flows.refine import try_refining
from pipeline.job import Job
from pipeline.records import Document
from pipeline.templates import try_merging
from pipeline.tokens import estimate
from pipeline.values import Unreadable

_SAMPLE = 2_000
"""Characters of a text, for a template that is given pieces."""


def check_rendering(job: Job, documents: Iterable[Document]) -> None:
    """Raise the `JobError` with which the template fails on each of these documents, however many they are.

    Looks no further than the first one on which it works, or of which another row may say more.
    """
    failed = 0
    first: JobError | None = None
    for document in documents:
        if document.unfit or (document.text is not None and not document.text.strip()):
            continue
        error = _failure(document, job)
        if error is None or "fuel" in error.message:
            return
        if any(isinstance(value, Unreadable) for value in document.fields.values()):
            return
        first = first or error
        failed += 1
    if first and failed > 1:
        raise JobError(f"{first.message}\nIt fails on each of {failed:,} rows.", first.hint)


def _failure(document: Document, job: Job) -> JobError | None:
    """With what it fails on one document."""
    if job.redactor:
        document, _ = redacted(document, job, job.redactor)
    own: dict[str, object] = {} if document.text is None else {"text": document.text}
    try:
        opening(document, job)
        if job.spec.prompt.flow:
            turns_of(document, job)
            return None
        text = job.template.render(document.fields, own | ({"chunk": 1, "chunks": 1} if job.spec.chunk else {}))
        if job.asks and not text.strip():
            return JobError(f"{BLANK}\n{job.template.where}")
        if job.reduce_template and _is_cut(document, job):
            try_merging(job.reduce_template, document.fields)
        if job.refine_template and document.text is not None and _is_cut(document, job):
            try_refining(job.refine_template, document.fields, document.text[:_SAMPLE], 2)
    except Unrendered as failure:
        return JobError(f"{failure}\n{job.path}")
    except JobError as error:
        return error
    return None


def _is_cut(document: Document, job: Job) -> bool:
    chunk = job.spec.chunk
    return chunk is not None and document.text is not None and estimate(document.text) > chunk.max_tokens
