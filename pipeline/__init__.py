"""Bulk LLM calls from a table to a table: quota-perfect, paid once, priced before they are sent."""

import os

from pipeline.version import __version__ as __version__

# Without it polars panics over a Parquet file with intervals; it looks once, when it is imported first.
os.environ.setdefault("POLARS_IMPORT_INTERVAL_AS_STRUCT", "1")
