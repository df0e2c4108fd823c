"""What an edit of a job or its input since its run was started comes to."""

from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from pipeline.store.digests import RowsChanged
from pipeline.store.earlier import line_of
from pipeline.store.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Change:
    """An edit of a job or its input since its run was started: the next generation begins once it is agreed to."""

    directory: Path
    known: Manifest
    lines: tuple[str, ...]  # what differs, without the values of prompts
    rows: RowsChanged | None = None  # None: cannot be told
    kept: int = 0  # calls that need not be made, of the rows that the plan looked at
    kept_usd: Decimal = Decimal(0)  # what they cost
    truncated: int = 0  # of them those that were cut

    @property
    def generation(self) -> int:
        """Number of the generation that begins."""
        return self.known.generation + 1

    @property
    def earlier(self) -> tuple[Path, ...]:
        """The directories whose answers are kept, newest first."""
        return self.directory, *line_of(self.directory.parent, self.known)
