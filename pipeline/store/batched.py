"""What was bought by batches: parts of calls in a folder of their own, in document order, texts included.

    batched/part-000003-00.parquet    calls of batch 3, the first of them

They stand apart from `calls/` since a part of calls beyond the newest part of results is half a seal there. Here a part
counts once the events say that its batch is taken.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pipeline.store import parts
from pipeline.store.batch_states import BatchState, read
from pipeline.store.lines import Call
from pipeline.store.seals import Sealed

FOLDER = "batched"
PART_CALLS = 4_000
PART_BYTES = 32 * 2**20
"""Texts in a part: what is at hand of it when its rows are opened again."""
_MOST_PIECES = 100_000
_KEPT = "Its batch is not taken yet: nothing is lost."


def write(calls: Iterable[Call], directory: Path, number: int, run: str) -> Iterator[tuple[Sealed, list[Call]]]:
    """Write the calls of a batch in their order, part by part; they count once its batch is taken."""
    for piece, together in enumerate(_cut(calls)):
        frame = parts.calls_frame(together, {})
        yield parts.write_frame(frame, _path(directory, number, piece), run, _KEPT), together


def _cut(calls: Iterable[Call]) -> Iterator[list[Call]]:
    together: list[Call] = []
    size = 0
    for call in calls:
        together.append(call)
        size += len(call.reply.text) + len(call.reply.extras)
        if len(together) == PART_CALLS or size >= PART_BYTES:
            yield together
            together, size = [], 0
    if together:
        yield together


def part_paths(directory: Path, states: Mapping[int, BatchState] | None = None) -> list[Path]:
    """The parts that count, in the order of their batches; `states` are what the events say, where that is at hand.

    One that was moved away is left out. Raises `RunStateError` where the events cannot be read.
    """
    known = read(directory) if states is None else states
    paths = (directory / part.part for _, state in sorted(known.items()) for part in state.parts)
    return [path for path in paths if path.exists()]


def there(directory: Path) -> list[Path]:
    """All parts that there are, whether they count or not."""
    return list((directory / FOLDER).glob("part-*.parquet"))


def void(directory: Path, states: Mapping[int, BatchState]) -> list[Path]:
    """Parts of batches that are not taken: what is in them is in the results."""
    counting = set(part_paths(directory, states))
    return [path for path in there(directory) if path not in counting]


def name_of(path: Path) -> int:
    """A number for a part that is no other's: below 0, where those of calls are above."""
    _, number, piece = path.stem.split("-")
    return -(int(number) * _MOST_PIECES + int(piece)) - 1


def number_of(name: int) -> int:
    """The batch of the part of such a number."""
    return (-name - 1) // _MOST_PIECES


def named(directory: Path, name: int) -> Path:
    """The part of such a number."""
    number, piece = divmod(-name - 1, _MOST_PIECES)
    return _path(directory, number, piece)


def _path(directory: Path, number: int, piece: int) -> Path:
    return directory / FOLDER / f"part-{number:06d}-{piece:02d}.parquet"
