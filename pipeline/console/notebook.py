"""How a run stands, in the cell of a notebook: one output that is drawn anew, and stays as it was last."""

import time
from typing import Any

from pipeline.console.live import Last, block
from pipeline.run.status import Status
from pipeline.terminal import visible

_WIDTH = 100  # cells: a notebook does not say how wide it is
_LEAST_S = 0.5
"""Between two drawings: each is a message to everybody who has the notebook open."""


class Cell:
    """The block in a cell, by IPython's own display: rich's `Live` draws nothing there without ipywidgets."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown = ""
        self._drawn_at = float("-inf")

    def show(self, status: Status, last: Last | None = None) -> None:
        """Draw it anew, where it is time."""
        if time.monotonic() - self._drawn_at >= _LEAST_S:
            self.end(status, last)

    def end(self, status: Status, last: Last | None = None) -> None:
        """Draw it as it stays."""
        from IPython.display import display

        self._drawn_at = time.monotonic()
        text = visible("\n".join(block(status, _WIDTH, last)))
        if text == self._shown:
            return
        self._shown, shown = text, {"text/plain": text}
        if self._handle is None:
            self._handle = display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)
