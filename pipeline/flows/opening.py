"""What stands before the prompt of a row: the system instruction, the job's examples, the row's own conversation."""

from dataclasses import replace

from pipeline.flows.base import Unrendered
from pipeline.flows.messages import NoConversationError, conversation
from pipeline.job import Job
from pipeline.prompts import Content, Params
from pipeline.records import Document


def opening(document: Document, job: Job) -> tuple[Params, Content]:
    """The parameters of the row's prompts, and the turns before what they ask. Raises `Unrendered`.

    Where nothing is asked after the row's conversation, that ends with what is asked.
    """
    column = job.spec.input.messages
    if column is None:
        return job.params, job.examples
    try:
        system, turns = conversation(document.fields[column], "model" if job.asks else "user")
    except NoConversationError as wrong:
        raise Unrendered("invalid_messages", f"the column {column}: {wrong}") from None
    if not turns and not job.asks:
        raise Unrendered("empty_input", f"the column {column} is empty")
    params = job.params if system is None else replace(job.params, system=system)
    return params, (*job.examples, *turns)
