"""What a person is told before a run's first call."""

from pipeline.console.plans import show_change, show_start
from pipeline.plan import Plan
from pipeline.run.prepare import Session


def show_beginning(plan: Plan, continued: bool, session: Session) -> None:
    """What an edit changes, if one does, and what is about to be done."""
    if session.change:
        show_change(session.change, bool(plan.sampled_rows))
    options, asked = session.options, ""
    if options.sampled:
        asked = f"sample of {{rows}}, {options.sampled}"
    elif options.pilot is not None or session.redo:
        asked = f"{'redo' if session.redo else 'pilot'} of {{rows}}"
    show_start(plan, session.job.name, str(session.directory), continued, session.kind, asked)
