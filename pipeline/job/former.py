"""A job as it was before its file was edited, of what a run keeps of it."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from pipeline.errors import JobError
from pipeline.job.job import GIVEN, Job
from pipeline.job.loading import compiled, read_job
from pipeline.sections import JobFile

_AS_NOW = ("endpoint", "target", "route", "pack")
"""Sections that are no part of an answer, or not with all that they say: who answers, and in how large packs."""


def former(path: Path, identity: Mapping[str, Any], fingerprint: str, output: str, table: str) -> Job | None:
    """The job at `path` that had this identity and fingerprint, with the targets that it has now, of the `table` that
    it was given; None where it cannot be made again."""
    settings: dict[str, Any] = {"output": {"path": output}}
    with suppress(JobError):
        now = read_job(path)[0].model_dump(include=set(_AS_NOW), exclude_unset=True, by_alias=True)
        settings |= {name: value for name, value in now.items() if name != "pack" or "pack" in identity}
    with suppress(JobError, ValidationError, TypeError, ValueError, LookupError):
        settings |= {name: _written(name, section) for name, section in identity.items() if name not in _OTHERWISE}
        if settings["input"].get("path") == GIVEN:
            settings["input"]["path"] = table
        if "output" in identity:
            settings["output"] |= _written("output", identity["output"])
        if "check" in identity:
            settings["check"] = identity["check"]["checks"]
        if "pack" in identity:
            settings.setdefault("pack", {})
        job = compiled(path, JobFile.model_validate(settings), {})
        return job if job.fingerprint == fingerprint else None
    return None


_OTHERWISE = ("output", "check", "pack")


def _written(name: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """A section as a job file has it."""
    written = {key: value for key, value in section.items() if value is not None}
    if name == "output" and "schema" in written:
        written["schema"] = orjson.loads(written["schema"])
    if name == "prompt" and not (written.get("template") and not written.get("flow")):
        written.pop("template", None)
    return {key: value for key, value in written.items() if key != "turns" or value}
