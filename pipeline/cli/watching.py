"""`pipeline watch`: a run of another process, as that process shows it."""

from pipeline.cli.flags import Json, Run
from pipeline.errors import RunStateError


def watch(
    run: Run = None,
    json: Json = False,
) -> None:
    """Show a run that goes on elsewhere.

    Until it ends; Ctrl-C ends the watching and not the run. With --json how it stands now, once.
    """
    from pipeline import console
    from pipeline.report.finding import find_run
    from pipeline.run import status
    from pipeline.store.afar import look

    directory = find_run(run, sums=True)
    if json:
        found = status.read(directory)
        if found is None:
            raise RunStateError(f"{directory} does not tell how its run stands", "`pipeline report` reads what it has")
        console.show_json(status.as_json(found))
        return
    try:
        for line in console.ended(console.follow(directory, look)):
            console.err.print(line)
    except KeyboardInterrupt:
        console.show_hint("the run goes on; `pipeline watch` shows it again")
