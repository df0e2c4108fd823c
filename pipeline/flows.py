"""What one document does: plain async functions over an injected `call`; they know no network and no disk.

The same flows run in a dry run, where `call` predicts, and in a real one, where it buys.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import anyio

from pipeline.chunking import split
from pipeline.errors import Halted, JobError
from pipeline.job import Job
from pipeline.prompts import Params, Prompt, said
from pipeline.records import Document, ErrorKind, Reply, Step
from pipeline.templates import Parts, Template, try_merging
from pipeline.tokens import estimate
from pipeline.values import Unreadable

Call = Callable[[Prompt], Awaitable[Reply]]

MOST_CHARACTERS = 2**26
"""Of one prompt: 64 for each token of a context of 1,048,576; the longest tokens, runs of blanks, have some 30."""
MOST_BYTES = 2**27
"""The same in UTF-8, where a Chinese character has three: 128 for each token."""
_SLICE = 2**20
_BLANK = "the template makes an empty prompt"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a flow came to: the reply that is the document's answer or its failure, and every reply on the way."""

    final: Reply
    replies: tuple[Reply, ...] = ()
    chunks: int = 0  # pieces the text was cut into, 1 when it was sent whole, 0 when nothing was sent
    input_tokens_est: int = 0


class _Unrendered(Exception):
    """No prompt can be made of one document; `reply` is what becomes of it."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.reply = Reply("", "invalid", error_kind=kind, error=message.replace("\n", "; "))


async def run(document: Document, job: Job, call: Call) -> Answer:
    """Run the job's flow for one document. Raises `Halted` when a call is not admitted any more.

    A template that fails on the document's values fails this document only, as does a prompt beyond `MOST_CHARACTERS`.
    """
    if document.text is not None and not document.text.strip():
        return Answer(
            Reply("", "invalid", error_kind="empty_input", error=f"the column {job.spec.input.text} is empty")
        )
    try:
        return await (answer if job.spec.chunk is None else map_reduce)(document, job, call)
    except _Unrendered as failure:
        return Answer(failure.reply)


async def answer(document: Document, job: Job, call: Call) -> Answer:
    """One call for the whole row."""
    own = {} if document.text is None else {"text": document.text}
    prompt = build(document, "answer", job.template, job.params, own)
    reply = await call(prompt)
    return Answer(reply, (reply,), 1, prompt.input_tokens_est)


async def map_reduce(document: Document, job: Job, call: Call) -> Answer:
    """One call for each piece, concurrently, then merging calls until one answer is left.

    A text that fits one piece takes one call. A piece that fails fails the document; a truncated one does not, but the
    answer is then marked truncated.
    """
    chunk, reduce_template, reduce_params = job.spec.chunk, job.reduce_template, job.reduce_params
    assert chunk and job.spec.reduce and reduce_template and reduce_params and document.text is not None
    pieces = split(document.text, chunk.max_tokens, chunk.overlap_tokens)
    if len(pieces) == 1:
        own = {"text": document.text, "chunk": 1, "chunks": 1}
        prompt = build(document, "answer", job.template, job.params, own)
        reply = await call(prompt)
        return Answer(reply, (reply,), 1, prompt.input_tokens_est)
    try:
        try_merging(reduce_template, document.fields)  # before its pieces are paid for
    except JobError as error:
        raise _Unrendered("template_error", error.message) from None
    prompts = [
        build(
            document,
            "map",
            job.template,
            job.params,
            {"text": document.text[piece.start : piece.end], "chunk": number + 1, "chunks": len(pieces)},
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
    while not (failed := _failure(replies)) and len(parts) > 1:
        level += 1
        groups = group(parts, budget)
        try:
            prompts = [
                build(
                    document,
                    "reduce",
                    reduce_template,
                    reduce_params,
                    {"parts": Parts(members)},
                    level=level,
                    chunk=number,
                    chunks=len(groups),
                )
                for number, members in enumerate(groups)
                if len(members) > 1
            ]
        except _Unrendered as failure:
            return Answer(failure.reply, tuple(bought), len(pieces), estimated)
        estimated += sum(prompt.input_tokens_est for prompt in prompts)
        replies = await gather(call, prompts)
        bought += replies
        alone = [members[0] for members in groups if len(members) == 1]  # only ever the last part of a level
        parts = [reply.text for reply in replies] + alone
    final = failed or _honest(replies[0], bought)
    return Answer(final, tuple(bought), len(pieces), estimated)


def build(
    document: Document,
    step: Step,
    template: Template,
    params: Params,
    own: Mapping[str, object],
    *,
    level: int = 0,
    chunk: int = 0,
    chunks: int = 1,
) -> Prompt:
    """The one place where a prompt is made, for estimates and runs alike; `own` are the job's own variables."""
    _refuse_beyond(template.least_characters(document.fields, own))  # a text that long is not copied to be rendered
    try:
        text = template.render(document.fields, own)
    except JobError as error:
        raise _Unrendered("template_error", error.message) from None
    if not text.strip():
        raise _Unrendered("empty_input", f"{_BLANK}; {template.where}")
    _refuse_beyond(len(text), text)  # before it is copied for its hash, its tokens, the journal and the wire
    tokens = estimate(text) + _system_tokens(params.system)
    return Prompt(document.row, document.key, step, said(text), params, tokens, level, chunk, chunks)


def check_rendering(job: Job, documents: Iterable[Document]) -> None:
    """Raise the `JobError` with which the template fails on each of these documents, however many they are.

    Looks no further than the first one on which it works, or of which another row may say more.
    """
    failed = 0
    first: JobError | None = None
    for document in documents:
        if document.text is not None and not document.text.strip():
            continue
        own: dict[str, object] = {} if document.text is None else {"text": document.text}
        try:
            text = job.template.render(document.fields, own | ({"chunk": 1, "chunks": 1} if job.spec.chunk else {}))
            if not text.strip():
                raise JobError(f"{_BLANK}\n{job.template.where}")
            if job.reduce_template and _is_cut(document, job):
                try_merging(job.reduce_template, document.fields)
            return
        except JobError as error:
            if any(isinstance(value, Unreadable) for value in document.fields.values()) or "fuel" in error.message:
                return
            first = first or error
            failed += 1
    if first and failed > 1:
        raise JobError(f"{first.message}\nIt fails on each of {failed:,} rows.", first.hint)


def _is_cut(document: Document, job: Job) -> bool:
    chunk = job.spec.chunk
    return chunk is not None and document.text is not None and estimate(document.text) > chunk.max_tokens


def _refuse_beyond(characters: int, text: str = "") -> None:
    """Raise for a prompt that no context holds."""
    if characters > MOST_CHARACTERS:
        has, most = f"{characters:,} characters", f"{MOST_CHARACTERS:,}"
    elif 4 * len(text) > MOST_BYTES and not text.isascii() and (size_bytes := _size_bytes(text)) > MOST_BYTES:
        has, most = f"{size_bytes:,} bytes", f"{MOST_BYTES:,}"
    else:
        return
    raise _Unrendered(
        "too_long", f"The prompt has {has}; the context of a model holds fewer than {most}. Chunk the text smaller."
    )


def _size_bytes(text: str) -> int:
    """In UTF-8, without another copy of the whole."""
    slices = (text[start : start + _SLICE] for start in range(0, len(text), _SLICE))
    return sum(len(part.encode("utf-8", "surrogatepass")) for part in slices)


async def gather(call: Call, prompts: Sequence[Prompt]) -> list[Reply]:
    """Make the calls concurrently; replies in the order of the prompts.

    The first failure withdraws the calls that were not sent yet; the list then lacks their replies. Raises `Halted`
    when a call was not admitted, unless one failed.
    """
    replies: list[Reply | None] = [None] * len(prompts)
    halted: list[Halted] = []

    async def one(index: int, prompt: Prompt) -> None:
        try:
            replies[index] = reply = await call(prompt)
        except Halted as stop:
            halted.append(stop)
            tasks.cancel_scope.cancel()
        else:
            if not usable(reply):
                tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for index, prompt in enumerate(prompts):
            tasks.start_soon(one, index, prompt)
    if halted and not any(reply and not usable(reply) for reply in replies):
        raise halted[0]
    return [reply for reply in replies if reply is not None]


def usable(reply: Reply) -> bool:
    """Whether the text may be built upon: an answer, whole or cut at the token limit with something in it."""
    return reply.status == "ok" or (reply.status == "truncated" and bool(reply.text))


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


def _failure(replies: Sequence[Reply]) -> Reply | None:
    """The failure that ends the document, without the text of a mere part."""
    failed = next((reply for reply in replies if not usable(reply)), None)
    return replace(failed, text="") if failed else None


def _honest(final: Reply, replies: Sequence[Reply]) -> Reply:
    """`final`, marked truncated when an answer that it was built from was cut."""
    cut = sum(reply.status == "truncated" for reply in replies)
    if final.status != "ok" or not cut:
        return final
    return replace(
        final,
        status="truncated",
        error_kind="truncated",
        error=f"{cut} of {len(replies)} part answers reached max_output_tokens",
    )


@lru_cache(maxsize=64)
def _system_tokens(system: str | None) -> int:
    return estimate(system) if system else 0
