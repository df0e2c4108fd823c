"""The output of a session: its place tried and held before the first call, its table written at the end."""

from contextlib import AbstractContextManager, nullcontext
from typing import BinaryIO

from pipeline.errors import RESUMABLE, InputChanged, PipelineError
from pipeline.run.prepare import Session, session_schema
from pipeline.store.export import attempt, export
from pipeline.store.place import Counted, Place, held


def output_place(session: Session) -> AbstractContextManager[Place | None]:
    """The output, tried and held by this run; a pilot writes none."""
    if session.options.pilot is not None:
        return nullcontext()

    def trial(file: BinaryIO) -> None:
        attempt(session_schema(session), session.form, file)

    return held(session.output, session.directory, session.rows, session.options.overwrite, trial)


def exported(session: Session, place: Place, stopped: PipelineError | None) -> PipelineError | None:
    """Write the output; or why it could not be, and the answers are in the run directory only."""
    if isinstance(stopped, InputChanged):
        return None  # it says so already

    def write(file: BinaryIO) -> Counted:
        source, own = session.source, session_schema(session)
        columns = [*own, *({source.id} - own.keys() if source.id else ())]
        json = session.form.suffix == ".jsonl"
        return export(
            lambda: source.batches(columns=columns, size=1024, json=json),
            own,
            session.directory / "results",
            file,
            session.form,
            session.rows,
            source.keys,
        )

    try:
        session.check_input()
        place.replace(write, lambda: session.check_input(looked_into=True))
    except PipelineError as error:
        error.exit_code = RESUMABLE
        return error
    return None
