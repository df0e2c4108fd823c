"""One session of a job, as `pipeline run --yes` has it: nobody is asked, and nothing is shown."""

from collections.abc import Callable, Coroutine
from functools import partial

import anyio

from pipeline.fleet.processes import launch
from pipeline.fleet.run import by_fleet
from pipeline.run import prepare, run
from pipeline.run.ending import Ended
from pipeline.run.engine import Monitor
from pipeline.run.services import Opening, open_services

Watch = Callable[[Monitor], Coroutine[None, None, None]]


async def quiet(monitor: Monitor) -> None:
    """What watches a run and shows nothing."""
    await anyio.sleep_forever()


def run_through(
    prepared: prepare.Session, watch: Watch = quiet, opening: Opening = open_services, workers: int = 0
) -> Ended:
    """Run what is prepared until it ends; 0 workers: in this process alone."""
    work = by_fleet(launch, workers) if workers else None
    return anyio.run(partial(run.run, work=work), prepared, lambda plan, continued, session: None, watch, opening)
