"""CSV, Parquet and JSONL as bounded batches of documents."""

from pipeline.source.conflicts import output_conflict, run_conflict
from pipeline.source.documents import ROW, Source
from pipeline.source.opening import open_source

__all__ = ["ROW", "Source", "open_source", "output_conflict", "run_conflict"]
