"""The section of a job file that says how short rows are asked together."""

from pydantic import Field

from pipeline.sections.base import Section


class Pack(Section):
    """Several short rows in one call: the system instruction is paid for once for all of them."""

    rows: int = Field(20, ge=2, le=500, description="rows in one call, at most")
    max_tokens: int = Field(
        20_000,
        ge=500,
        le=150_000,
        description="tokens of one call's prompt, by estimate, at most; a row of more than half of them goes alone",
    )
