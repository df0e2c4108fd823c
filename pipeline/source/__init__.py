"""CSV, Parquet and JSONL as bounded batches of documents."""

from pipeline.source.documents import ROW, Source, open_source, output_conflict

__all__ = ["ROW", "Source", "open_source", "output_conflict"]
