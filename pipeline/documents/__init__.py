"""A folder of documents as rows: found, read once, and kept as texts that no later change of a file touches."""

from pipeline.documents.finding import KINDS, File, Found, Kind, root_of, survey

__all__ = ["KINDS", "File", "Found", "Kind", "root_of", "survey"]
