"""What must not be sent: found in the values of a row, replaced by placeholders, and put back into an answer."""

from pipeline.redaction.hiding import Hidden, Redactor, restored, restored_json
from pipeline.redaction.kinds import KINDS

__all__ = ["KINDS", "Hidden", "Redactor", "restored", "restored_json"]
