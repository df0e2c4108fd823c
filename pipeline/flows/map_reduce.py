"""One call for each piece of a long text, then merging calls until one answer is left."""

from collections.abc import Sequence
from dataclasses import replace

from pipeline.errors import JobError
from pipeline.flows.base import Answer, Call, Unrendered, build, failure_of, gather, honest, usable
from pipeline.flows.judging import conclude
from pipeline.flows.pieces import pieces_of
from pipeline.flows.plain import asked_whole
from pipeline.job import Job
from pipeline.records import JUDGED, Document, Reply
from pipeline.templates import merged, try_merging
from pipeline.tokens import estimate


async def map_reduce(document: Document, job: Job, call: Call) -> Answer:
    """One call for each piece, concurrently, then merging calls until one answer is left.

    A text that fits one piece takes one call. A piece that fails fails the document; a truncated one does not, but the
    answer is then marked truncated.
    """
    chunk, reduce_template, reduce_params = job.spec.chunk, job.reduce_template, job.reduce_params
    assert chunk and job.spec.reduce and reduce_template and reduce_params and document.text is not None
    pieces = pieces_of(document.text, chunk)
    if len(pieces) == 1:
        own = {"text": document.text, "chunk": 1, "chunks": 1}
        return await asked_whole(document, job, call, own)
    try:
        try_merging(reduce_template, document.fields)  # before its pieces are paid for
    except JobError as error:
        raise Unrendered("template_error", error.message) from None
    prompts = [
        build(
            document,
            "map",
            job.template,
            job.params_of("map"),
            {"text": piece, "chunk": number + 1, "chunks": len(pieces)},
            before=job.examples,
            chunk=number,
            chunks=len(pieces),
        )
        for number, piece in enumerate(pieces)
    ]
    estimated = sum(prompt.input_tokens_est for prompt in prompts)
    replies = await gather(call, prompts)
    bought = list(replies)
    parts = [reply.text for reply in replies]
    budget = job.spec.reduce.max_input_tokens
    level = 0
    while not (failed := failure_of(replies)) and len(parts) > 1:
        level += 1
        groups = group(parts, budget)
        concludes = len(groups) == 1
        params = job.concluding(reduce_params) if concludes else reduce_params
        try:
            prompts = [
                build(
                    document,
                    "reduce",
                    reduce_template,
                    params,
                    merged(members),
                    level=level,
                    chunk=number,
                    chunks=len(groups),
                )
                for number, members in enumerate(groups)
                if len(members) > 1
            ]
        except Unrendered as failure:
            return Answer(failure.reply, tuple(bought), len(pieces), estimated)
        estimated += sum(prompt.input_tokens_est for prompt in prompts)
        if concludes:
            asked = await conclude(prompts[0], job, call)
            return _concluded(asked, bought, len(pieces), estimated)
        replies = await gather(call, prompts)
        bought += replies
        alone = [members[0] for members in groups if len(members) == 1]  # only ever the last part of a level
        parts = [reply.text for reply in replies] + alone
    assert failed  # two pieces or more are always merged in the end
    return Answer(failed, tuple(bought), len(pieces), estimated)


def _concluded(asked: Sequence[Reply], bought: Sequence[Reply], chunks: int, estimated: int) -> Answer:
    """The document's answer: what concluded it, cut where something that it was made of was cut."""
    replies, final = (*bought, *asked), asked[-1]
    if not usable(final) and final.error_kind not in JUDGED:  # the text of a failure is none
        final = replace(final, text="")
    return Answer(honest(final, replies), replies, chunks, estimated)


def group(parts: Sequence[str], budget_tokens: int) -> list[list[str]]:
    """Neighbouring parts that fit one reduce prompt together; at least two in each, so that every level shrinks.

    A last part that would stand alone takes a neighbour, or, where its neighbours are only two, stays alone.
    """
    groups: list[list[str]] = []
    filled = 0
    for part in parts:
        size = estimate(part) + 2  # the blank line between parts
        if groups and (filled + size <= budget_tokens or len(groups[-1]) < 2):
            groups[-1].append(part)
            filled += size
        else:
            groups.append([part])
            filled = size
    if len(groups) > 1 and len(groups[-1]) == 1 and len(groups[-2]) > 2:
        groups[-1].insert(0, groups[-2].pop())
    return groups
