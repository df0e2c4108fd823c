"""A running answer that is carried from piece to piece of a long text."""

from collections.abc import Mapping, Sequence

from pipeline.errors import JobError
from pipeline.flows.base import Answer, Call, Unrendered, build, failure_of, honest
from pipeline.flows.judging import conclude
from pipeline.flows.pieces import pieces_of
from pipeline.flows.plain import asked_whole
from pipeline.job import Job
from pipeline.records import Document, Reply
from pipeline.templates import Template, try_merging


async def refine(document: Document, job: Job, call: Call) -> Answer:
    """One call after another: for the first piece, then for each other one with the answer so far.

    A text that fits one piece takes one call. A piece that fails fails the document, which has what was paid; an answer
    that was cut is carried on, and the last one is then marked truncated.
    """
    chunk, template, params = job.spec.chunk, job.refine_template, job.refine_params
    assert chunk and template and params and document.text is not None
    texts = pieces_of(document.text, chunk)
    count = len(texts)
    if count == 1:
        return await asked_whole(document, job, call, {"text": document.text, "chunk": 1, "chunks": 1})
    try:
        try_refining(template, document.fields, texts[1], count)  # before the first piece is paid for
    except JobError as error:
        raise Unrendered("template_error", error.message) from None
    first = {"text": texts[0], "chunk": 1, "chunks": count}
    prompt = build(document, "map", job.template, job.params_of("map"), first, before=job.examples, chunks=count)
    estimated = prompt.input_tokens_est
    bought: list[Reply] = []
    for number, text in enumerate(texts[1:], 1):
        reply = await call(prompt)
        bought.append(reply)
        if failed := failure_of([reply]):
            return Answer(failed, tuple(bought), count, estimated)
        own = {"summary": reply.text, "text": text, "chunk": number + 1, "chunks": count}
        try:
            its = job.concluding(params) if number == count - 1 else params
            prompt = build(document, "refine", template, its, own, level=number, chunk=number, chunks=count)
        except Unrendered as failure:
            return Answer(failure.reply, tuple(bought), count, estimated)
        estimated += prompt.input_tokens_est
    bought += await conclude(prompt, job, call)
    return Answer(honest(bought[-1], bought), tuple(bought), count, estimated)


def try_refining(template: Template, fields: Mapping[str, object], text: str, chunks: int) -> None:
    """Raise the `JobError` with which a [refine] template fails on this row whatever the answer so far is."""

    def own(answers: Sequence[str]) -> dict[str, object]:
        return {"summary": answers[0], "text": text, "chunk": 2, "chunks": chunks}

    try_merging(template, fields, own)
