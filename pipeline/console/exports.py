"""What is said of a table that was written."""

from pipeline.console.screen import err, styled, things
from pipeline.language import Data
from pipeline.places import Kind
from pipeline.store.place import Counted
from pipeline.terminal import one_line


def show_exported(path: object, counted: Counted, kind: Kind) -> None:
    """How much of the run is in it, and whose answers they are."""
    pending = counted.rows - counted.finished
    err.print(
        styled(
            Data(f"{one_line(str(path))}: "),
            things(counted.rows, "row"),
            (f", {pending:,} of them pending" if pending else "", "yellow"),
            _rehearsed(kind),
        )
    )


def show_exported_calls(path: object, calls: int, kind: Kind) -> None:
    """How many calls are in it, and whose answers they are."""
    err.print(styled(Data(f"{one_line(str(path))}: "), f"{things(calls, 'line')} of calls", _rehearsed(kind)))


def _rehearsed(kind: Kind) -> tuple[str, str]:
    return (f"; {kind}: the emulator's answers" if kind != "real" else "", "yellow")
