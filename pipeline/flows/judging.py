"""What an answer is held to before it is its row's, the job's schema and checks, and what is asked where it is not.

At most two calls more are made for a row: one where the answer is not as the schema says, and one where it is and a
check does not hold.
"""

from dataclasses import replace

import orjson

from pipeline.answer_columns import moved
from pipeline.flows.base import Call
from pipeline.job import Job
from pipeline.prompts import Prompt, Text, Turn
from pipeline.records import PASSING, ErrorKind, Reply, Step, changed
from pipeline.tokens import estimate

_WRONG = "$: the value is not of the type that was asked for"
"""What an estimate takes to be wrong with an answer."""


async def conclude(prompt: Prompt, job: Job, call: Call) -> tuple[Reply, ...]:
    """Ask for what is to be the row's answer, and hold it to what the job wants; every reply on the way, last that one.

    Where the job allows it, the model is shown what is wrong with its answer, or another target is asked in its place.
    What comes of that is the row's answer if it is a whole one; else the one before stands as it is, and is kept.
    """
    first = await call(prompt)
    if job.schema is None and job.checks is None:
        return (first,)
    replies: tuple[Reply, ...] = (judged(first, job),)
    if replies[-1].error_kind == "schema" and job.spec.output.repair:
        said = f"This is not the JSON that was asked for: {replies[-1].error}."
        replies = _with(replies, await call(once_more(prompt, "repair", replies[-1].text, said, job)), job)
    answer = replies[-1]
    failed = _failed(prompt, answer, job)
    if not failed:
        return replies
    checks = [job.spec.check[number] for number in failed]
    told = "; ".join(check.told for check in checks)
    replies = (*replies[:-1], _invalid(answer, "check", told))
    if any(check.escalate for check in checks):
        second = await call(replace(prompt, step="escalate"))
    elif any(check.retry for check in checks):
        second = await call(once_more(prompt, "retry", answer.text, f"Your answer will not do: {told}.", job))
    else:
        return replies
    replies = _with(replies, second, job)
    if replies[-1].status == "ok" and (failed := _failed(prompt, replies[-1], job)) and not second.predicted:
        told = "; ".join(job.spec.check[number].told for number in failed)
        replies = (*replies[:-1], _invalid(replies[-1], "check", told))
    return replies


def judged(reply: Reply, job: Job) -> Reply:
    """A whole answer as the JSON that the schema asks for, or invalid for what is wrong; any other as it is."""
    if job.schema is None or reply.status != "ok" or not reply.text:  # what has no text is a function call
        return reply
    if reply.predicted == "right" or (reply.predicted and not job.spec.output.repair):
        return reply
    text, trouble = (reply.text, _WRONG) if reply.predicted else job.schema.judge(reply.text)
    if trouble:
        return _invalid(reply, "schema", trouble)
    if text == reply.text:
        return reply
    before = moved(reply.extras, -reply.text.find(text))  # places are those in what is kept
    return changed(reply, text=text, extras=orjson.dumps(before).decode() if before else "")


def once_more(prompt: Prompt, step: Step, text: str, said: str, job: Job) -> Prompt:
    """The same again, with the answer to it and what is wrong with that."""
    said += " Answer again with the whole JSON, and nothing else." if job.schema else " Answer again."
    content = (*prompt.content, Turn("model", (Text(text),)), Turn("user", (Text(said),)))
    tokens = prompt.input_tokens_est + estimate(text) + estimate(said)
    return replace(prompt, step=step, content=content, input_tokens_est=tokens)


def _with(replies: tuple[Reply, ...], second: Reply, job: Job) -> tuple[Reply, ...]:
    """The replies with a second answer to the same, last the one of the two that is the row's."""
    taken = second if second.predicted else judged(second, job)
    if taken.status == "ok" or taken.error_kind in PASSING or replies[-1].error_kind == taken.error_kind:
        return (*replies, taken)
    return (*replies[:-1], second, replies[-1])


def _failed(prompt: Prompt, answer: Reply, job: Job) -> list[int]:
    """The job's checks that do not hold for a whole answer."""
    if job.checks is None or answer.status != "ok" or not answer.text or answer.predicted == "right":
        return []
    if answer.predicted:  # one that is mendable fails none of the checks for which another target is asked
        asked = enumerate(job.spec.check)
        return [number for number, check in asked if answer.predicted == "wrong" or not check.escalate]
    value = orjson.loads(answer.text) if job.schema else None
    return job.checks.failed(answer.text, value, prompt.input_tokens_est)


def _invalid(reply: Reply, kind: ErrorKind, told: str) -> Reply:
    return changed(reply, status="invalid", error_kind=kind, error=told)
