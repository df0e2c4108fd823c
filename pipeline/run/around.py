"""Who is around a run: who agrees to it, watches it, ends it, and is told of it."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from pipeline.plan import Plan
from pipeline.run.engine import Monitor, Works
from pipeline.run.prepare import Session
from pipeline.run.webhook import Posts
from pipeline.store.place import Output

Watch = Callable[[Monitor], Coroutine[None, None, None]]
"""Shows progress, until it is cancelled."""
Confirm = Callable[[Plan, bool, Session], None]
"""Sees the plan, whether a run is continued, and the session; raises where it is not agreed to."""
Heed = Callable[[Works], Coroutine[None, None, None]]
"""Ends the run when somebody asks for it."""


@dataclass(frozen=True, slots=True)
class Around:
    """All whom one run has to do with, but for those who answer."""

    place: Output | None  # of its output
    confirm: Confirm
    watch: Watch
    heed: Heed
    posts: Posts | None
