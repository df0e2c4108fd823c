"""Bulk LLM calls from a table to a table: quota-perfect, paid once, priced before they are sent."""

import os

__version__ = "0.1.0"

# Without it polars panics over a Parquet file with intervals; it looks once, when it is imported first.
os.environ.setdefault("POLARS_IMPORT_INTERVAL_AS_STRUCT", "1")
