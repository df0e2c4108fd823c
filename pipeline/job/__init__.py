"""The job file: loaded, checked, resolved with the flags, and frozen."""

from pipeline.job.former import former
from pipeline.job.job import Job, key_of
from pipeline.job.loading import compiled, load, read_job

__all__ = ["Job", "compiled", "former", "key_of", "load", "read_job"]
