"""What an answer is held to before it is its row's: the job's schema, and one more call where it is not met."""

from dataclasses import replace

from pipeline.flows.base import Call
from pipeline.job import Job
from pipeline.prompts import Prompt, Text, Turn
from pipeline.records import PASSING, Reply, changed
from pipeline.tokens import estimate

_WRONG = "$: the value is not of type"
"""What an estimate takes to be wrong with an answer."""


async def held(prompt: Prompt, job: Job, call: Call) -> tuple[Reply, ...]:
    """Ask `prompt` and hold the answer to the job's schema; every reply on the way, and last the row's answer.

    Where the job allows it, an answer that is not as it should be is shown to the model with what is wrong, once. What
    comes of that is the row's answer if it is a whole one; else the first stands as it is, and is kept.
    """
    first = await call(prompt)
    answer = judged(first, job)
    if answer.error_kind != "schema" or not job.asks_again:
        return (answer,)
    second = await call(once_more(prompt, first.text, answer.error or ""))
    if second.status != "ok" and second.error_kind not in PASSING:
        return (second, answer)
    return (first, judged(second, job))


def judged(reply: Reply, job: Job) -> Reply:
    """A whole answer as the JSON that the schema asks for, or invalid for what is wrong; any other as it is."""
    if job.schema is None or reply.status != "ok" or reply.predicted == "right" or not reply.text:  # a function call
        return reply
    if not reply.text and reply.extras:  # a function call is an answer of its own
        return reply
    text, trouble = (reply.text, _WRONG) if reply.predicted else job.schema.judge(reply.text)
    if not trouble:
        return reply if text == reply.text else changed(reply, text=text)
    return changed(reply, status="invalid", error_kind="schema", error=trouble)


def once_more(prompt: Prompt, text: str, trouble: str) -> Prompt:
    """The same again, with the answer to it and what is wrong with that."""
    said = f"This is not the JSON that was asked for: {trouble}. Answer again with the whole JSON, and nothing else."
    content = (*prompt.content, Turn("model", (Text(text),)), Turn("user", (Text(said),)))
    tokens = prompt.input_tokens_est + estimate(text) + estimate(said)
    return replace(prompt, step="repair", content=content, input_tokens_est=tokens)
