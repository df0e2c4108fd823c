"""Several turns of one row, asked one after the other."""

from dataclasses import replace

from pipeline.flows.base import Answer, Call, Unrendered, beside, failure_of, honest, prompt_of, rendered, usable
from pipeline.flows.judging import conclude
from pipeline.flows.messages import NoConversationError, texts
from pipeline.flows.opening import opening
from pipeline.job import Job
from pipeline.prompts import Text, Turn, said
from pipeline.records import JUDGED, Document, Reply, Step, changed


async def conversation(document: Document, job: Job, call: Call) -> Answer:
    """One call a turn, each with the turns and the answers before it; the last answer is the row's.

    All turns are made before the first is paid for. A turn that fails ends the row with its failure; an answer that was
    cut is carried on, and the last one is then marked truncated. The answers are all kept, up to a failure.
    """
    params, content = opening(document, job)
    asked = turns_of(document, job)
    count = len(asked)
    bought: list[Reply] = []
    answers: list[str] = []
    estimated = 0
    for number, text in enumerate(asked):
        its = params if number + 1 == count else replace(params, schema=None)  # only the row's answer has a schema
        content = (*content, *said(text, () if number else document.media))
        step: Step = "turn" if number else "answer"
        try:
            prompt = prompt_of(document, step, content, its, level=number, chunk=number, chunks=count)
        except Unrendered as failure:  # with the answers so far no context holds it
            return Answer(beside(failure.reply, answers=answers), tuple(bought), 1, estimated)
        estimated += prompt.input_tokens_est
        replies = await conclude(prompt, job, call) if number + 1 == count else (await call(prompt),)
        bought += replies
        reply = replies[-1]
        if number + 1 < count and (failed := failure_of([reply]) or _without_text(reply)):
            return Answer(beside(failed, answers=answers), tuple(bought), 1, estimated)
        answers.append(reply.text)
        content = (*content, Turn("model", (Text(reply.text),)))
    final = honest(bought[-1], bought)
    is_answer = usable(final) or final.error_kind in JUDGED
    return Answer(beside(final, answers=answers if is_answer else answers[:-1]), tuple(bought), 1, estimated)


def _without_text(reply: Reply) -> Reply | None:
    """The failure that an answer is of which nothing can stand in a later prompt, such as one of function calls."""
    if reply.text.strip():
        return None
    told = "a turn before the last one was answered without text"
    return changed(reply, status="error", error_kind="empty_answer", error=told)


def turns_of(document: Document, job: Job) -> list[str]:
    """What the user says, turn by turn. Raises `Unrendered`."""
    own = {} if document.text is None else {"text": document.text}
    asked = [rendered(document, template, own) for template in job.turns]
    if (column := job.spec.prompt.turns_column) is not None:
        try:
            asked += texts(document.fields[column])
        except NoConversationError as wrong:
            raise Unrendered("invalid_messages", f"the column {column}: {wrong}") from None
        if not asked:
            raise Unrendered("empty_input", f"the column {column} is empty")
    return asked
