"""Where everything lies: run directories, the output of a rehearsal, and what all runs of a user share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, overload

from pipeline.environment import cache_home, state_home
from pipeline.urls import Url

Kind = Literal["real", "offline", "rehearsal"]
"""Who answers: the service; the embedded emulator; an emulator that was reached as if it were the service."""
SUFFIXES: Mapping[Kind, str] = {"real": "", "offline": "-offline", "rehearsal": "-rehearsal"}
"""A rehearsal shares no directory, output, cache or book with real runs."""
RUNS = Path("runs")
DOCUMENTS = RUNS / ".documents.sqlite"
"""The texts of all documents that were read here."""
_OURS = "prompt-pipeline"


def run_directory(job: str, kind: Kind) -> Path:
    """The run directory of a job of this name."""
    return RUNS / f"{job}{SUFFIXES[kind]}"


@overload
def beside(path: Path, kind: Kind) -> Path: ...
@overload
def beside(path: Url, kind: Kind) -> Url: ...
def beside(path: Path | Url, kind: Kind) -> Path | Url:
    """The same place, or one beside it for what is no real run's."""
    return path.with_stem(path.stem + SUFFIXES[kind])


def quota_file(kind: Kind) -> Path:
    """The quota book: what is sent, counted by project and model. Raises `PipelineError` without a place."""
    return state_home() / _OURS / f"quota{SUFFIXES[kind]}.sqlite"


def latencies_file(kind: Kind) -> Path:
    """How long batches took. Raises `PipelineError` without a place."""
    return state_home() / _OURS / f"batches{SUFFIXES[kind]}.jsonl"


def room_file(kind: Kind) -> Path:
    """What all runs have waiting in batches. Raises `PipelineError` without a place."""
    return state_home() / _OURS / f"room{SUFFIXES[kind]}.sqlite"


def spend_file() -> Path:
    """The book of spending, by project and day. Raises `PipelineError` without a place."""
    return state_home() / _OURS / "spend.sqlite"


def projects_file() -> Path:
    """Which key succeeded which in the middle of a run, by the names of their projects. Raises as `spend_file`."""
    return state_home() / _OURS / "projects"


def fetched_folder() -> Path:
    """Copies of tables that were fetched from object storage. Raises `PipelineError` without a place."""
    return cache_home() / _OURS / "fetched"


def scratch_folder() -> Path:
    """Where workers keep the shards of a run on object storage. Raises `PipelineError` without a place."""
    return cache_home() / _OURS / "scratch"


def copies_folder() -> Path:
    """Where runs on object storage are read that none here has led. Raises `PipelineError` without a place."""
    return cache_home() / _OURS / "runs"


def cache_file() -> Path:
    """The answers of earlier runs, unless the job names another place. Raises `PipelineError` without a place."""
    return cache_home() / _OURS / "answers.sqlite"
