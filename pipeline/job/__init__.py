"""The job file: loaded, checked, resolved with the flags, and frozen."""

from pipeline.job.former import former
from pipeline.job.job import GIVEN, Job, key_of
from pipeline.job.loading import compiled, laid_over, load, load_with, made, read_job, with_input_alone

__all__ = [
    "GIVEN",
    "Job",
    "compiled",
    "former",
    "key_of",
    "laid_over",
    "load",
    "load_with",
    "made",
    "read_job",
    "with_input_alone",
]
