"""What all runs of one key share, in the user's state directory: the quota book and the ledger of spending.

The key itself is in neither: only a hash tells two projects apart.
"""

import hashlib
from pathlib import Path

from pipeline.environment import state_home
from pipeline.job import Job, api_key
from pipeline.store.manifest import SUFFIXES, Kind


def quota_place(job: Job, endpoint: str, kind: Kind = "real") -> tuple[Path, str]:
    """File and name of the book for this key, endpoint and model; a rehearsal's is apart from that of real runs.

    Raises `PipelineError` without a key or a place.
    """
    name = f"{endpoint}/{_project(job)}/{job.params.model}"
    return _file(f"quota{SUFFIXES[kind]}.sqlite"), name


def spend_place(job: Job, endpoint: str) -> tuple[Path, str]:
    """File and name of the spending with this key. Raises `PipelineError` without a key or a place."""
    return _file("spend.sqlite"), f"{endpoint}/{_project(job)}"


def _file(name: str) -> Path:
    return state_home() / "prompt-pipeline" / name


def _project(job: Job) -> str:
    return hashlib.blake2b(api_key(job).encode(), digest_size=8).hexdigest()
