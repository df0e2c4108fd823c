"""One call for the whole row."""

from collections.abc import Mapping

from pipeline.flows.base import Answer, Call, build, prompt_of
from pipeline.flows.judging import conclude
from pipeline.flows.opening import opening
from pipeline.job import Job
from pipeline.records import Document


async def answer(document: Document, job: Job, call: Call) -> Answer:
    """One call for the whole row."""
    own: dict[str, object] = {} if document.text is None else {"text": document.text}
    return await asked_whole(document, job, call, own | ({"chunk": 1, "chunks": 1} if job.spec.chunk else {}))


async def asked_whole(document: Document, job: Job, call: Call, own: Mapping[str, object]) -> Answer:
    """The same, of any flow whose text needs no cutting; `own` are the job's own variables."""
    params, before = opening(document, job)
    if job.asks:
        prompt = build(document, "answer", job.template, params, own, before=before)
    else:  # the conversation of the row ends with what is asked
        prompt = prompt_of(document, "answer", before, params)
    replies = await conclude(prompt, job, call)
    return Answer(replies[-1], replies, 1, prompt.input_tokens_est)
