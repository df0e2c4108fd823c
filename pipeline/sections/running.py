"""The section of a job file that says how a run goes."""

import re
from datetime import datetime, time

from pydantic import Field, field_validator

from pipeline.sections.base import Section
from pipeline.urls import refuse_unfit


class RunSection(Section):
    """How a run goes."""

    by: str | None = Field(
        None,
        examples=["07:00"],
        description='when all should be answered, as "07:00", the next one, or "2026-11-24 07:00", local time:'
        " `[model] lane` and targets with the fallback `deadline` keep to it; `--by` wins over it",
    )

    path: str | None = Field(
        None,
        examples=["s3://bucket/runs"],
        description="where the run of several workers lies, on object storage: `s3://`, `gs://`, `az://`, or `file:///`"
        " for a folder; the run directory of a job lies below it by its name. Default: in `runs/` here. It needs"
        " `--workers` or `--on`, and the extra `objects`",
        json_schema_extra={"pattern": r"^(s3|gs|az|file)://"},
    )

    @field_validator("path")
    @classmethod
    def _is_a_place(cls, path: str | None) -> str | None:
        if path is not None:
            refuse_unfit(path)
        return path

    @field_validator("by")
    @classmethod
    def _is_a_time(cls, text: str | None) -> str | None:
        if text is None:
            return None
        try:
            if clock := re.fullmatch(r"(\d{1,2}):(\d{2})", text.strip()):
                time(int(clock[1]), int(clock[2]))
            else:
                datetime.fromisoformat(text.strip())
        except ValueError:
            raise ValueError(f'"{text}" is no time: write "07:00" or "2026-11-24 07:00"') from None
        return text
