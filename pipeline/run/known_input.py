"""The input of a run, for whoever reads the run later."""

from pathlib import Path

from pipeline.documents import listing
from pipeline.job import Job
from pipeline.places import DOCUMENTS
from pipeline.run.prepare import open_input
from pipeline.source import Source
from pipeline.store.manifest import Manifest


def known_input(job: Job, directory: Path, manifest: Manifest) -> tuple[Source, bool]:
    """The table of the run in a directory, and whether it is what the run began with: documents as the run knows them.

    Where it does not know them any more, nobody can say that of those in the folder. Raises as `open_input`.
    """
    kept = listing.read(directory, DOCUMENTS)
    source = open_input(job.spec, kept=kept)
    is_known = kept is not None or source.table.documents is None
    return source, is_known and source.fingerprint == manifest.source
