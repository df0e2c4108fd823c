"""What one document does: plain async functions over an injected `call`; they know no network and no disk.

The same flows run in a dry run, where `call` predicts, and in a real one, where it buys.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace

from pipeline.flows.base import MOST_BYTES, MOST_CHARACTERS, Answer, Call, Unrendered, beside, build, gather, usable
from pipeline.flows.checking import check_rendering
from pipeline.flows.conversation import conversation
from pipeline.flows.map_reduce import group, map_reduce
from pipeline.flows.plain import answer
from pipeline.flows.redacting import redacted
from pipeline.flows.refine import refine
from pipeline.job import Job
from pipeline.records import Document, Reply

__all__ = [
    "MOST_BYTES",
    "MOST_CHARACTERS",
    "Answer",
    "Call",
    "answer",
    "build",
    "check_rendering",
    "conversation",
    "gather",
    "group",
    "map_reduce",
    "redacted",
    "refine",
    "run",
    "usable",
]


async def run(document: Document, job: Job, call: Call) -> Answer:
    """Run the job's flow for one document. Raises `Halted` when a call is not admitted any more.

    A template that fails on the document's values fails this document only, as does a prompt beyond `MOST_CHARACTERS`.
    """
    if document.unfit:
        return Answer(Reply("", "invalid", error_kind="file", error=document.unfit))
    if document.text is not None and not document.text.strip() and not document.media:
        return Answer(
            Reply("", "invalid", error_kind="empty_input", error=f"the column {job.spec.input.text} is empty")
        )
    if job.redactor is None:
        return await _run(document, job, call)
    shown, hidden = redacted(document, job, job.redactor)
    answer = await _run(shown, job, call)
    return replace(answer, final=beside(answer.final, redacted=hidden.counts))


async def _run(document: Document, job: Job, call: Call) -> Answer:
    try:
        return await _flow_of(document, job)(document, job, call)
    except Unrendered as failure:
        return Answer(failure.reply)


def _flow_of(document: Document, job: Job) -> Callable[[Document, Job, Call], Awaitable[Answer]]:
    if job.spec.prompt.flow:
        return conversation
    if job.spec.chunk is None or document.media:  # of a job that cuts texts, a document that is sent as a file
        return answer
    return map_reduce if job.spec.reduce else refine
