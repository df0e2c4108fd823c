"""Bulk LLM calls from a table to a table: quota-perfect, paid once, priced before they are sent.

From Python: `import pipeline as pp`, then `pp.load`, `pp.estimate`, `pp.run` or `await pp.run_async`, and `pp.read`.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipeline.version import __version__ as __version__

if TYPE_CHECKING:
    from pipeline import errors
    from pipeline.api import (
        Estimate,
        Job,
        PipelineError,
        Results,
        estimate,
        estimate_async,
        load,
        read,
        run,
        run_async,
    )

__all__ = [
    "Estimate",
    "Job",
    "PipelineError",
    "Results",
    "errors",
    "estimate",
    "estimate_async",
    "load",
    "read",
    "run",
    "run_async",
]

# Without it polars panics over a Parquet file with intervals; it looks once, when it is imported first.
os.environ.setdefault("POLARS_IMPORT_INTERVAL_AS_STRUCT", "1")


def __getattr__(name: str) -> Any:
    """The names above, when they are first asked for: all that stands behind them takes half a second."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("pipeline.errors") if name == "errors" else getattr(import_module("pipeline.api"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
