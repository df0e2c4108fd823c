"""What notes the sums of a shard, and puts its parts together; a module of set-up for `faultpoints.Runs`."""

import sys
from pathlib import Path

import pipeline.cli
from pipeline.errors import RunStateError
from pipeline.report.tallies import write_done


def main() -> None:
    """`pipeline DIRECTORY ROWS`."""
    try:
        print(write_done(Path(sys.argv[1]), int(sys.argv[2])))
    except (RunStateError, OSError) as error:  # a disk that cannot be read, which the command line tells
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3)
    sys.exit(0)


vars(pipeline.cli)["main"] = main
