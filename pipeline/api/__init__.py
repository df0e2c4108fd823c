"""What a program or a notebook calls: jobs, estimates, runs and their results."""

import sys
from inspect import signature
from types import ModuleType

from pipeline.api.estimates import Estimate, estimate, estimate_async
from pipeline.api.jobs import load
from pipeline.api.results import Results, read
from pipeline.api.runs import run, run_async
from pipeline.errors import PipelineError
from pipeline.job import Job

__all__ = [
    "Estimate",
    "Job",
    "PipelineError",
    "Results",
    "estimate",
    "estimate_async",
    "load",
    "read",
    "run",
    "run_async",
]


class _Called(ModuleType):
    """`pipeline.run` is a folder of modules, and what runs a job when it is called."""

    __call__ = staticmethod(run)
    __signature__ = signature(run)


sys.modules["pipeline.run"].__class__ = _Called
sys.modules["pipeline.run"].__doc__ = f"run{signature(run)}\n\n{run.__doc__}"  # what help() and a notebook show for it
