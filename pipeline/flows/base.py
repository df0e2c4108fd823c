"""What every flow is made of: prompts, calls, and what is built on their replies."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import anyio
import orjson

from pipeline.errors import Halted, JobError, Parked
from pipeline.prompts import Content, Params, Prompt, Text, Tools, alone, said
from pipeline.records import Document, ErrorKind, Media, Reply, Step, changed
from pipeline.schemas import as_told
from pipeline.templates import Template
from pipeline.tokens import estimate

Call = Callable[[Prompt], Awaitable[Reply]]

MOST_CHARACTERS = 2**26
"""Of one prompt: 64 for each token of a context of 1,048,576; the longest tokens, runs of blanks, have some 30."""
MOST_BYTES = 2**27
"""The same in UTF-8, where a Chinese character has three: 128 for each token."""
_SLICE = 2**20
BLANK = "the template makes an empty prompt"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a flow came to: the reply that is the document's answer or its failure, and every reply on the way."""

    final: Reply
    replies: tuple[Reply, ...] = ()
    chunks: int = 0  # pieces the text was cut into, 1 when it was sent whole, 0 when nothing was sent
    input_tokens_est: int = 0


class Unrendered(Exception):
    """No prompt can be made of one document; `reply` is what becomes of it."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.reply = Reply("", "invalid", error_kind=kind, error=message.replace("\n", "; "))


def build(
    document: Document,
    step: Step,
    template: Template,
    params: Params,
    own: Mapping[str, object],
    *,
    before: Content = (),
    level: int = 0,
    chunk: int = 0,
    chunks: int = 1,
) -> Prompt:
    """A prompt of what a template makes, for estimates and runs alike.

    `own` are the job's own variables, `before` the turns that stand before it.
    """
    content = (*before, *said(rendered(document, template, own), document.media))
    return prompt_of(document, step, content, params, level=level, chunk=chunk, chunks=chunks)


def rendered(document: Document, template: Template, own: Mapping[str, object]) -> str:
    """What a template makes of a row. Raises `Unrendered`."""
    _refuse_beyond(template.least_characters(document.fields, own))  # a text that long is not copied to be rendered
    try:
        text = template.render(document.fields, own)
    except JobError as error:
        raise Unrendered("template_error", error.message) from None
    if not text.strip():
        raise Unrendered("empty_input", f"{BLANK}; {template.where}")
    return text


def prompt_of(
    document: Document, step: Step, content: Content, params: Params, *, level: int = 0, chunk: int = 0, chunks: int = 1
) -> Prompt:
    """The one place where a prompt is made. Raises `Unrendered` for one that no context holds."""
    whole, files_tokens = alone(content), 0
    texts = [whole] if whole is not None else []
    if whole is None:
        parts = [part for turn in content for part in turn.parts]
        texts = [part.text for part in parts if isinstance(part, Text)]
        whole = "\n".join(texts)
        files_tokens = sum(part.tokens for part in parts if isinstance(part, Media))
    _refuse_beyond(len(whole), whole)  # before it is copied for its hash, its tokens, the journal and the wire
    constant = _constant_tokens(params.system, params.schema, params.tools)
    tokens = sum(map(estimate, texts)) + files_tokens + constant
    return Prompt(document.row, document.key, step, content, params, tokens, level, chunk, chunks)


def _refuse_beyond(characters: int, text: str = "") -> None:
    """Raise for a prompt that no context holds."""
    if characters > MOST_CHARACTERS:
        has, most = f"{characters:,} characters", f"{MOST_CHARACTERS:,}"
    elif 4 * len(text) > MOST_BYTES and not text.isascii() and (size_bytes := _size_bytes(text)) > MOST_BYTES:
        has, most = f"{size_bytes:,} bytes", f"{MOST_BYTES:,}"
    else:
        return
    raise Unrendered(
        "too_long", f"The prompt has {has}; the context of a model holds fewer than {most}. Chunk the text smaller."
    )


def _size_bytes(text: str) -> int:
    """In UTF-8, without another copy of the whole."""
    slices = (text[start : start + _SLICE] for start in range(0, len(text), _SLICE))
    return sum(len(part.encode("utf-8", "surrogatepass")) for part in slices)


async def gather(call: Call, prompts: Sequence[Prompt]) -> list[Reply]:
    """Make the calls concurrently; replies in the order of the prompts.

    The first failure withdraws the calls that were not sent yet; the list then lacks their replies. Raises `Halted`
    when a call was not admitted, unless one failed; and `Parked`, once all are made, when one waits for a batch.
    """
    replies: list[Reply | None] = [None] * len(prompts)
    halted: list[Halted] = []
    parked: list[Parked] = []

    async def one(index: int, prompt: Prompt) -> None:
        try:
            replies[index] = reply = await call(prompt)
        except Halted as stop:
            halted.append(stop)
            tasks.cancel_scope.cancel()
        except Parked as later:  # the others may wait in the same batch, or be answered meanwhile
            parked.append(later)
        else:
            if not usable(reply):
                tasks.cancel_scope.cancel()

    async with anyio.create_task_group() as tasks:
        for index, prompt in enumerate(prompts):
            tasks.start_soon(one, index, prompt)
    if halted and not any(reply and not usable(reply) for reply in replies):
        raise halted[0]
    if parked and not any(reply and not usable(reply) for reply in replies):
        raise parked[0]
    return [reply for reply in replies if reply is not None]


def usable(reply: Reply) -> bool:
    """Whether the text may be built upon: an answer, whole or cut at the token limit with something in it."""
    return reply.status == "ok" or (reply.status == "truncated" and bool(reply.text))


def failure_of(replies: Sequence[Reply]) -> Reply | None:
    """The failure that ends the document, without the text of a mere part."""
    failed = next((reply for reply in replies if not usable(reply)), None)
    return replace(failed, text="") if failed else None


def honest(final: Reply, replies: Sequence[Reply]) -> Reply:
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


def beside(reply: Reply, **values: object) -> Reply:
    """The reply with these values among what came beside it."""
    known = orjson.loads(reply.extras) if reply.extras else {}
    return changed(reply, extras=orjson.dumps({**known, **values}).decode())


@lru_cache(maxsize=64)
def _constant_tokens(system: str | None, schema: str | None, tools: Tools | None) -> int:
    """Of what every prompt of a step has beside its own text."""
    return sum(estimate(text) for text in (system, as_told(schema)) if text) + _tool_tokens(tools)


def _tool_tokens(tools: Tools | None) -> int:
    """Of the functions that are declared, in the form that Gemini is told them: they are counted as input."""
    if tools is None or not tools.functions:
        return 0
    declared = ",".join(
        f'{{"name":"{each.name}","description":"{each.description}","parametersJsonSchema":{each.parameters}}}'
        for each in tools.functions
    )
    return estimate(f'{{"functionDeclarations":[{declared}]}}')
