"""The section of a job file that says how a run goes."""

import re
from datetime import datetime, time

from pydantic import Field, field_validator

from pipeline.sections.base import Section


class RunSection(Section):
    """How a run goes."""

    by: str | None = Field(
        None,
        examples=["07:00"],
        description='when all should be answered, as "07:00", the next one, or "2026-11-24 07:00", local time:'
        " `[model] lane` and targets with the fallback `deadline` keep to it; `--by` wins over it",
    )

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
