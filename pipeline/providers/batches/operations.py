"""A batch of Gemini's as its service tells of it: a long-running operation. Pure, and never raises."""

import re
from base64 import b64decode
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pipeline.providers.answers import is_error
from pipeline.providers.batches.base import BatchStatus, RemoteBatch, RemoteFile
from pipeline.providers.batches.lines import grpc_failure
from pipeline.providers.foreign import dumped, mapping, mappings, string, whole_number

BATCH_NAME = re.compile(r"batches/[A-Za-z0-9_-]{1,200}", re.ASCII)
FILE_NAME = re.compile(r"files/[A-Za-z0-9_-]{1,200}", re.ASCII)
"""They become part of addresses that the key goes to."""

_STATES: Mapping[str, BatchStatus] = {
    "QUEUED": "pending",
    "PENDING": "pending",
    "RUNNING": "running",
    "PAUSED": "running",
    "UPDATING": "running",
    "CANCELLING": "cancelling",
    "SUCCEEDED": "succeeded",
    "PARTIALLY_SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
    "EXPIRED": "expired",
}
"""`BATCH_STATE_…` on the wire, `JOB_STATE_…` in the SDK and in what relays made of it."""


def read_operation(told: Mapping[str, Any]) -> RemoteBatch | None:
    """A batch; None for anything else."""
    metadata = mapping(told.get("metadata"))
    name = string(told.get("name")) or string(metadata.get("name"))
    if not BATCH_NAME.fullmatch(name):
        return None
    given = [mapping(metadata.get("output")), mapping(told.get("response"))]
    files = dict.fromkeys(string(each.get("responsesFile")) for each in given)
    outputs = tuple(file for file in files if FILE_NAME.fullmatch(file))
    inline = next(filter(None, map(_inline, given)), None) if not outputs else None
    error = told.get("error") if is_error(told.get("error")) else None
    stats = mapping(metadata.get("batchStats"))
    fault = grpc_failure(error) if error else None
    return RemoteBatch(
        name=name,
        label=string(metadata.get("displayName")),
        input_file=string(mapping(metadata.get("inputConfig")).get("fileName")) or None,
        status=_status(string(metadata.get("state")), told.get("done") is True, bool(error), bool(outputs or inline)),
        lines=whole_number(stats.get("requestCount")),
        done=(whole_number(stats.get("successfulRequestCount")) or 0) if stats else None,
        failed=(whole_number(stats.get("failedRequestCount")) or 0) if stats else None,
        created=epoch(metadata.get("createTime")),
        ended=epoch(metadata.get("endTime")),
        outputs=outputs,
        inline=inline,
        error=fault.message if fault else "",
        over_limit=fault is not None and fault.kind in ("rate_limit", "day_quota"),
    )


def read_file(told: Mapping[str, Any]) -> RemoteFile | None:
    """A file of the Files API; None for anything else."""
    name = string(told.get("name"))
    if not FILE_NAME.fullmatch(name):
        return None
    return RemoteFile(name, _sha256(string(told.get("sha256Hash"))), whole_number(told.get("sizeBytes")))


def epoch(told: object) -> float | None:
    """Seconds since the epoch of a time as protobuf writes it, with up to nine digits; None for anything else."""
    try:
        return datetime.fromisoformat(string(told)).timestamp()
    except (ValueError, OverflowError):
        return None


def _status(state: str, is_done: bool, has_error: bool, has_output: bool) -> BatchStatus:
    """A batch has succeeded once there is something to fetch: the reference to it may come later than its end."""
    status = _STATES.get(re.sub(r"^(?:BATCH|JOB)_STATE_", "", state.upper()), "running")
    if is_done and status in ("pending", "running", "cancelling"):
        status = "failed" if has_error else "succeeded"
    if status == "succeeded" and not has_output:
        return "failed" if has_error else "running"
    return status


def _inline(output: Mapping[str, Any]) -> tuple[bytes, ...]:
    """The answers within an operation, as lines of a file of results."""
    answers = mappings(mapping(output.get("inlinedResponses")).get("inlinedResponses"))
    return tuple(dumped({"key": mapping(each.get("metadata")).get("key"), **each}) + b"\n" for each in answers)


def _sha256(told: str) -> str | None:
    """In hexadecimal, of base64: of the digest itself or, as the service wrote it in 2024, of its hexadecimal form."""
    if re.fullmatch(r"[0-9a-fA-F]{64}", told):
        return told.lower()
    try:
        raw = b64decode(told, validate=True)
    except ValueError:
        return None
    if len(raw) == 32:
        return raw.hex()
    return raw.decode().lower() if re.fullmatch(rb"[0-9a-fA-F]{64}", raw) else None
