"""One session of a job, as `pipeline run --yes` has it: nobody is asked, and nothing is shown."""

from collections.abc import Callable, Coroutine

import anyio

from pipeline.run import prepare, run
from pipeline.run.ending import Ended
from pipeline.run.engine import Monitor
from pipeline.run.services import Opening, open_services

Watch = Callable[[Monitor], Coroutine[None, None, None]]


async def quiet(monitor: Monitor) -> None:
    """What watches a run and shows nothing."""
    await anyio.sleep_forever()


def run_through(prepared: prepare.Session, watch: Watch = quiet, opening: Opening = open_services) -> Ended:
    """Run what is prepared until it ends."""
    return anyio.run(run.run, prepared, lambda plan, continued, session: None, watch, opening)
