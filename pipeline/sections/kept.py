"""The sections of a job file that say what it may cost, and where answers are kept."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from pipeline.sections.base import Section, refuse_key, refuse_unreal
from pipeline.urls import is_url, located, refuse_unfit

OUTPUT_SUFFIXES = (".parquet", ".csv", ".jsonl")
_MOST_MB = 10**9


class Budget(Section):
    """Caps on spending."""

    max_usd: float | None = Field(
        None, gt=0, allow_inf_nan=False, examples=[5.0], description="this run never spends more than this"
    )
    max_usd_per_day: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        examples=[20.0],
        description="all runs with this key on this machine spend no more, from 00:00 UTC on",
    )
    max_usd_per_month: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        examples=[200.0],
        description="all runs with this key on this machine spend no more, from the first of the month on, UTC",
    )
    allow_unpriced: bool = Field(False, description="run under a cap though the model's price is unknown")


class Cache(Section):
    """Whole answers are kept and used again by other runs; the section alone turns it on."""

    url: str | None = Field(
        None,
        examples=["answers.sqlite", "redis://cache.example.com:6379/0"],
        description="path of the SQLite file, or `redis://host:port/db`. Default: "
        "`prompt-pipeline/answers.sqlite` in the user's cache directory",
    )
    password_env: str | None = Field(
        None, examples=["REDIS_PASSWORD"], description="variable that holds the Redis server's password"
    )
    max_age_days: float = Field(30, gt=0, description="an older answer is bought again")
    max_mb: float = Field(
        1000, gt=0, le=_MOST_MB, description="size of the file; answers used longest ago are thrown out"
    )

    _named = field_validator("password_env")(refuse_key)

    @model_validator(mode="after")
    def _known_scheme(self) -> "Cache":
        if self.url is None or "://" not in self.url:
            if self.password_env is not None:
                raise ValueError("password_env is for a Redis server: url names none")
            if self.url is not None and (not Path(self.url).name or "\0" in self.url):
                raise ValueError("url must be the path of a file, or redis://host:port/db")
            return self
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError:
            raise ValueError("url is not redis://host:port/db") from None
        if parts.scheme not in ("redis", "rediss") or not parts.hostname or port == 0 or parts.query:
            raise ValueError("url must be the path of a file, redis://host:port/db or rediss://host:port/db")
        if parts.password is not None:
            raise ValueError("url must not hold a password: name a variable that does with password_env")
        return self


class CheckSection(Section):
    """What must hold for an answer, beside its schema; a row for which one does not is `invalid`, its answer kept."""

    holds: str = Field(
        min_length=1,
        examples=["length(response) > 20"],
        description="SQL condition on `response`, the columns of `[output] schema`, and `input_tokens`, the estimate"
        " of the prompt",
    )
    message: str | None = Field(
        None,
        min_length=1,
        examples=["it is too short"],
        description="what is wrong where it does not hold, in words for the model and for the row's `error`",
    )
    retry: bool = Field(False, description="tell the model, and ask it once more")
    escalate: str | None = Field(
        None,
        examples=["large"],
        description="the target that is asked in its place, once; its `fallback` must name `check`",
    )

    @model_validator(mode="after")
    def _one_of_the_two(self) -> "CheckSection":
        if self.retry and self.escalate is not None:
            raise ValueError("retry asks the same model once more, and escalate another target: set one of the two")
        return self

    @property
    def told(self) -> str:
        """What is said where it does not hold."""
        return self.message or f"this does not hold: {self.holds}"


class Output(Section):
    """The table that is written."""

    path: str = Field(
        examples=["results/reviews.parquet"],
        description=".parquet, .csv or .jsonl; with `/` at its end a folder of such files: `reviews/`, `reviews.csv/`;"
        " either may lie in object storage: `s3://`, `gs://`, `az://`",
        json_schema_extra={"pattern": r"\.(parquet|csv|jsonl)$|[^/]/$"},
    )
    include_text: bool = Field(False, description="keep the `[input] text` column")
    csv_safe: bool = Field(
        False,
        description="in .csv, put a `'` before text that a spreadsheet would run: = + - @, tab, line break",
    )

    excel: bool = Field(False, description="a .csv that Excel opens rightly: a byte order mark, and CRLF")
    schema_: str | dict[str, Any] | None = Field(
        None,
        alias="schema",
        examples=["mood: good|bad, score: float, name: str?"],
        description='the JSON that an answer is: `"mood: good|bad, score: float, topics: [str], name: str?"`, a table'
        ' of JSON Schema, `{ file = "x.schema.json" }` beside the job file, or `{ class = "package.module:Model" }` of'
        " pydantic",
    )
    repair: bool = Field(
        False, description="ask once more, with what is wrong, where an answer is not as `schema` has it"
    )
    prefix: str = Field("", examples=["answer_"], description="before the names of the columns that `schema` makes")

    @model_validator(mode="after")
    def _known_suffix(self) -> "Output":
        if self.path.endswith((".xlsx", ".xls")):
            raise ValueError("path cannot be a workbook: a .csv with `excel = true` opens in Excel")
        if not located(self.path).name or not (self.is_folder or self.path.endswith(OUTPUT_SUFFIXES)):
            raise ValueError(f"path must end in one of {' '.join(OUTPUT_SUFFIXES)}, or be a folder: with / at its end")
        if "\0" in self.path:
            raise ValueError("path has a character that no path has")
        (refuse_unfit if is_url(self.path) else refuse_unreal)(self.path)
        if self.schema_ is None and (self.repair or self.prefix):
            raise ValueError(f"{'repair' if self.repair else 'prefix'} is for a `schema`: there is none")
        if self.excel and self.suffix != ".csv":
            raise ValueError(f"excel is for a .csv: {self.path} is none")
        return self

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder of tables, one of each part of the input."""
        return self.path.endswith("/")

    @property
    def suffix(self) -> str:
        """That of its files: Parquet where a folder's name does not say it."""
        suffix = located(self.path).suffix
        return suffix if suffix in OUTPUT_SUFFIXES else ".parquet"
