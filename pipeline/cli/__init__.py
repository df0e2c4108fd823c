"""The command line. Signals are heeded before anything heavy is imported."""

import atexit
import os
import sys
from contextlib import suppress
from typing import NoReturn

from pipeline.process import INTERRUPTED, end, heed_signals, heed_signals_no_more, quick_imports


def main() -> NoReturn:
    """Run the command line; the process ends with its exit code."""
    try:
        heed_signals()
        with quick_imports():
            from pipeline.cli.app import command_line

        command_line()
    except KeyboardInterrupt:  # before there is anybody who could tell more
        with suppress(OSError):
            os.write(2, b"\nInterrupted. What was paid for is kept.\n")
        sys.exit(INTERRUPTED)
    finally:
        atexit.register(heed_signals_no_more)  # once no thread is waited for any more


def process() -> NoReturn:
    """`main` where the process is there for nothing else."""
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"  # it would look through all that is installed for some: 50 ms
    try:
        main()
    except SystemExit as ended:
        end(ended.code if isinstance(ended.code, int) else 1)
