"""The way in, for `pipeline` and `python -m pipeline`: Ctrl-C is heeded before anything is imported."""

import os


def start() -> None:
    """Run the command line; the process ends with its exit code."""
    try:
        from pipeline.cli import process
    except KeyboardInterrupt:
        os.write(2, b"\nInterrupted. What was paid for is kept.\n")
        os._exit(130)
    process()


if __name__ == "__main__":
    start()
