"""A batch and a file as OpenAI's protocol tells of them. Pure, and never raises."""

import re
from collections.abc import Mapping
from typing import Any

from pipeline.providers.batches.base import BatchStatus, RemoteBatch, RemoteFile
from pipeline.providers.failures import clean
from pipeline.providers.foreign import any_number, mapping, mappings, string, whole_number

ID = re.compile(r"[A-Za-z0-9_-]{1,200}", re.ASCII)
"""It becomes part of addresses that the key goes to."""

_STATES: Mapping[str, BatchStatus] = {
    "validating": "pending",
    "in_progress": "running",
    "finalizing": "running",
    "completed": "succeeded",
    "failed": "failed",
    "expired": "expired",
    "cancelling": "cancelling",
    "cancelled": "cancelled",
}
_ENDS = ("completed_at", "failed_at", "expired_at", "cancelled_at")


def read_chat_batch(told: Mapping[str, Any]) -> RemoteBatch | None:
    """A batch; None for anything else. Of one that expired or was cancelled, what was finished is handed out."""
    name, status = string(told.get("id")), _STATES.get(string(told.get("status")).lower(), "running")
    if not ID.fullmatch(name) or "status" not in told:
        return None
    files = (string(told.get(each)) for each in ("output_file_id", "error_file_id"))
    outputs = tuple(file for file in dict.fromkeys(files) if ID.fullmatch(file))
    counts = mapping(told.get("request_counts"))
    errors = mappings(mapping(told.get("errors")).get("data"))
    codes = [string(each.get("code")) for each in errors]
    first = next((string(each.get("message")) for each in errors), "")
    words = clean(": ".join(filter(None, [next(iter(codes), ""), first])))
    return RemoteBatch(
        name=name,
        label=string(mapping(told.get("metadata")).get("label")),
        input_file=string(told.get("input_file_id")) or None,
        status="running" if status == "succeeded" and not outputs else status,
        lines=whole_number(counts.get("total")) or None,  # 0 until the file is read
        done=whole_number(counts.get("completed")),
        failed=whole_number(counts.get("failed")),
        created=any_number(told.get("created_at")),
        ended=next(filter(None, (any_number(told.get(each)) for each in _ENDS)), None),
        outputs=outputs,
        error=words,
        over_limit="token_limit_exceeded" in codes,
    )


def read_chat_file(told: Mapping[str, Any]) -> RemoteFile | None:
    """A file; None for anything else."""
    name = string(told.get("id"))
    return RemoteFile(name, None, whole_number(told.get("bytes"))) if ID.fullmatch(name) else None
