"""The job file: loaded, checked, resolved with the flags, and frozen."""

import difflib
import hashlib
import io
import os
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline.errors import JobError
from pipeline.prices import Rates, fixed_rates
from pipeline.records import RESET_ZONE, Limits, Params
from pipeline.templates import CHUNK_VARIABLES, REDUCE_VARIABLES, Template, read_template, read_text

KEY_VARIABLES = ("GEMINI_API_KEY", "GOOGLE_API_KEY")
DEFAULT_BASE_URL = "https://generativelanguage.googleapis.com"
OUTPUT_SUFFIXES = (".parquet", ".csv", ".jsonl")
_ANSWER_SECTIONS = ("input", "prompt", "chunk", "reduce", "model")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Input(_Section):
    """The table that is read."""

    path: str = Field(
        description="a file or a glob: .csv .tsv .parquet .jsonl; or a .parquet in cloud storage that polars reads"
    )
    id: str | None = Field(None, description="the column that names a row; must be unique. Default: the row number")
    text: str | None = Field(None, description="the column that may be chunked")
    where: str | None = Field(None, description="SQL predicate: only these rows")
    encoding: str | None = Field(
        None, description="of .csv, .tsv and .jsonl, as Python names it: `gb18030`, `utf-16`, `latin-1`. Default: UTF-8"
    )

    separator: str | None = Field(
        None, description="the character between the cells of a .csv: `;` or `\\t`. Default: `,`, in a .tsv a tab"
    )

    @field_validator("separator")
    @classmethod
    def _one_character(cls, mark: str | None) -> str | None:
        if mark is not None and (len(mark) != 1 or not mark.isascii() or mark in '"\r\n\0'):
            raise ValueError("a separator is one character, such as ';'")
        return mark

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str | None) -> str | None:
        try:
            if name is not None:
                io.TextIOWrapper(io.BytesIO(), encoding=name).read()
        except (LookupError, UnicodeError, ValueError, AssertionError):  # not there; no text; a name with NUL
            raise ValueError(f'"{name}" is no encoding; name one as "gb18030", "utf-16" or "latin-1"') from None
        return name


class PromptSection(_Section):
    """What is asked about each row."""

    template: str | None = Field(None, description="minijinja; `{{ column }}` inserts a column")
    template_file: str | None = Field(None, description="the template in a file beside the job file")
    system: str | None = Field(None, description="system instruction, the same for every row")
    system_file: str | None = Field(None, description="the system instruction in a file beside the job file")


class Chunk(_Section):
    """How a long text is cut."""

    max_tokens: int = Field(ge=64, description="largest piece of `[input] text`, by estimate")
    overlap_tokens: int = Field(0, ge=0, description="how much of the previous piece the next one repeats, at most")

    @model_validator(mode="after")
    def _overlap_leaves_progress(self) -> "Chunk":
        if self.overlap_tokens * 2 > self.max_tokens:
            raise ValueError("overlap_tokens must be at most half of max_tokens")
        return self


class Reduce(_Section):
    """How the parts of one long document become one answer."""

    template: str | None = Field(None, description="`{{ parts }}` inserts the answers to the pieces")
    template_file: str | None = Field(None, description="the template in a file beside the job file")
    system: str | None = Field(None, description="system instruction of the merging calls. Default: that of [prompt]")
    max_input_tokens: int = Field(
        16_000, ge=128, description="room for part answers in one prompt; more of them are merged in levels"
    )
    max_output_tokens: int | None = Field(None, ge=1, description="longest merged answer. Default: that of [model]")


class Prices(_Section):
    """Own prices in USD per million tokens, for a model that the tables lack."""

    input: float = Field(ge=0, allow_inf_nan=False)
    output: float = Field(ge=0, allow_inf_nan=False)
    cached: float | None = Field(None, ge=0, allow_inf_nan=False)


class ModelSection(_Section):
    """The model and its parameters; what is left out stays at the model's default."""

    name: str = Field(description="as in `pipeline models`")
    max_output_tokens: int | None = Field(None, ge=1, description="longest answer, thinking included")
    temperature: float | None = Field(None, ge=0, le=2, description="ignored by Gemini 3.6 and later")
    top_p: float | None = Field(None, ge=0, le=1, description="ignored by Gemini 3.6 and later")
    top_k: int | None = Field(None, ge=1, description="ignored by Gemini 3.6 and later")
    seed: int | None = Field(None, ge=-(2**31), lt=2**31, description="best effort of the service")
    stop: list[str] = Field(default_factory=list, description="the answer ends before any of these")
    thinking: Literal["minimal", "low", "medium", "high", "xhigh"] | int | None = Field(
        None, description="a level, or a budget in tokens for Gemini 2.5 (0 off, -1 automatic)"
    )
    response_mime_type: Literal["text/plain", "application/json", "text/x.enum"] | None = Field(
        None, description='"application/json" makes the answer one JSON text'
    )
    safety: dict[str, str] = Field(default_factory=dict, description='e.g. { HARASSMENT = "BLOCK_ONLY_HIGH" }')
    prices: Prices | None = Field(None, description="{ input, output, cached } in USD per million tokens")


class Endpoint(_Section):
    """Where the calls go."""

    base_url: str | None = Field(
        None, description="a relay, proxy or emulator; `GOOGLE_GEMINI_BASE_URL` wins over it. Default: Google's"
    )
    api_version: Literal["v1", "v1beta"] = Field("v1beta", description="v1beta knows more models")
    key_env: str | None = Field(
        None, description="variable that holds the key. Default: `GEMINI_API_KEY`, else `GOOGLE_API_KEY`"
    )
    timeout_s: float = Field(300, gt=0, description="longest wait for one answer, seconds")


class LimitsSection(_Section):
    """What the project may use of this model, as granted; a limit left out is learned, 0 means there is none."""

    rpm: int | None = Field(None, ge=0, description="requests per minute")
    tpm: int | None = Field(None, ge=0, description="input tokens per minute")
    rpd: int | None = Field(None, ge=0, description="requests per day")
    concurrency: int | None = Field(None, ge=1, description="most calls in flight. Default: from the measured latency")
    reset_zone: str = Field(RESET_ZONE, description="time zone at whose midnight the day's requests reset, e.g. `UTC`")

    @field_validator("reset_zone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (KeyError, ValueError, OSError):  # not there; not a name; a folder of names
            raise ValueError(f'"{name}" is no time zone; name one as "America/Los_Angeles" or "UTC"') from None
        return name


class Budget(_Section):
    """Caps on spending."""

    max_usd: float | None = Field(None, gt=0, allow_inf_nan=False, description="the run never spends more")
    max_usd_per_day: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="all runs with this key on this machine, since 00:00 UTC"
    )
    max_usd_per_month: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="all runs with this key on this machine, since the first of the month, UTC",
    )
    allow_unpriced: bool = Field(False, description="run under a cap though the model's price is unknown")


class Cache(_Section):
    """Whole answers are kept and used again by other runs; the section alone turns it on."""

    url: str | None = Field(
        None,
        description="path of the SQLite file, or `redis://host:port/db`. Default: "
        "`prompt-pipeline/answers.sqlite` in the user's cache directory",
    )
    password_env: str | None = Field(None, description="variable that holds the Redis server's password")
    max_age_days: float = Field(30, gt=0, description="an older answer is bought again")
    max_mb: float = Field(1000, gt=0, description="size of the file; answers used longest ago are thrown out")

    @model_validator(mode="after")
    def _known_scheme(self) -> "Cache":
        if self.url is None or "://" not in self.url:
            if self.password_env is not None:
                raise ValueError("password_env is for a Redis server: url names none")
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


class Output(_Section):
    """The table that is written."""

    path: str = Field(description=".parquet, .csv or .jsonl")
    include_text: bool = Field(False, description="keep the `[input] text` column")
    csv_safe: bool = Field(
        False,
        description="in .csv, put a `'` before text that a spreadsheet would run: = + - @, tab, line break",
    )

    excel: bool = Field(False, description="a .csv that Excel opens rightly: a byte order mark, and CRLF")

    @model_validator(mode="after")
    def _known_suffix(self) -> "Output":
        if Path(self.path).suffix not in OUTPUT_SUFFIXES or self.path.endswith("/"):
            raise ValueError(f"path must end in one of {' '.join(OUTPUT_SUFFIXES)}")
        if "\0" in self.path:
            raise ValueError("path has a character that no path has")
        if self.excel and not self.path.endswith(".csv"):
            raise ValueError(f"excel is for a .csv: {self.path} is none")
        return self


class JobFile(_Section):
    """The sections of a job file."""

    input: Input
    prompt: PromptSection
    chunk: Chunk | None = None
    reduce: Reduce | None = None
    model: ModelSection
    endpoint: Endpoint = Endpoint()  # type: ignore[call-arg]  # every field has a default
    limits: LimitsSection = LimitsSection()  # type: ignore[call-arg]
    budget: Budget = Budget()  # type: ignore[call-arg]
    cache: Cache | None = None
    output: Output

    @model_validator(mode="after")
    def _chunking_is_whole(self) -> "JobFile":
        if (self.chunk is None) != (self.reduce is None):
            raise ValueError("[chunk] and [reduce] go together")
        if self.chunk and self.input.text is None:
            raise ValueError("[chunk] needs [input] text: the column that is cut")
        return self


@dataclass(frozen=True)
class Job:
    """A loaded job: `spec` as resolved, the compiled templates and the parameters of each step."""

    name: str
    path: Path
    spec: JobFile
    template: Template
    reduce_template: Template | None
    params: Params
    reduce_params: Params | None
    origins: Mapping[str, str]  # "model.name" → "flag", the variable's name or the job file's path; no entry: a default

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that can change an answer: not limits, budget, cache, output, endpoint."""
        return hashlib.blake2b(orjson.dumps(self.identity, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the fingerprint hashes, section by section, files read in and unset keys left out."""
        sections = {
            name: getattr(self.spec, name).model_dump(exclude_none=True, exclude={"prices"})
            for name in _ANSWER_SECTIONS
            if getattr(self.spec, name) is not None
        }
        sections["prompt"] = {"template": self.template.source, "system": self.params.system}
        if self.reduce_template:
            sections["reduce"].pop("template_file", None)
            sections["reduce"]["template"] = self.reduce_template.source
        return sections

    @property
    def columns(self) -> tuple[str, ...]:
        """Input columns that the templates need, sorted; the chunked text and the parts are not columns."""
        names = {
            name
            for template, own in self.templates
            for name in (template.variables - own) | template.uses.of_row.keys()
        }
        return tuple(sorted(names))

    @property
    def templates(self) -> tuple[tuple[Template, frozenset[str]], ...]:
        """Each template with the variables that the job itself gives it."""
        own = CHUNK_VARIABLES if self.spec.chunk else frozenset({"text"}) if self.spec.input.text else frozenset()
        merging = ((self.reduce_template, REDUCE_VARIABLES),) if self.reduce_template else ()
        return ((self.template, own), *merging)

    def reads(self, table: Collection[str]) -> tuple[str, ...]:
        """Those of a table's columns that the templates look at, in its order."""
        found = frozenset[str]().union(*(template.reads(table, own) for template, own in self.templates))
        return tuple(name for name in table if name in found)

    @property
    def limits(self) -> Limits:
        """The limits as configured; None: unknown, 0: there is none."""
        return Limits(**self.spec.limits.model_dump())

    @property
    def own_rates(self) -> Rates | None:
        """Prices that the job names itself."""
        prices = self.spec.model.prices
        return fixed_rates(prices.input, prices.output, prices.cached) if prices else None


def load(path: Path, flags: Mapping[str, object] | None = None) -> Job:
    """Read a job file; `flags` ("model.name" → value, None: not given) win over it. Raises `JobError`."""
    try:
        data = tomllib.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise JobError(f"no job file at {path}", _other_jobs(path)) from None
    except OSError as error:
        raise JobError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise JobError(f"{path} is not UTF-8 (byte {error.start})", "save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{path} is not valid TOML: {error}") from None
    if path.stem.startswith(".") or not path.stem.isprintable():
        raise JobError(
            f"the job file is called {path.name!r}, and its run directory would be called {path.stem!r}",
            "give it a plain name such as summarize.toml",
        )
    origins = {
        f"{section}.{key}": str(path) for section, values in data.items() if isinstance(values, dict) for key in values
    }
    if (base_url := os.environ.get("GOOGLE_GEMINI_BASE_URL")) and isinstance(data.setdefault("endpoint", {}), dict):
        data["endpoint"]["base_url"] = base_url
        origins["endpoint.base_url"] = "GOOGLE_GEMINI_BASE_URL"
    for name, value in (flags or {}).items():
        if value is not None:
            section, key = name.split(".")
            if isinstance(data.setdefault(section, {}), dict):
                data[section][key] = value
                origins[name] = "flag"
    try:
        spec = JobFile.model_validate(data)
    except ValidationError as error:
        raise _as_job_error(error, path) from None
    return _compile(path, spec, origins)


def api_key(job: Job) -> str:
    """The key from the environment. Raises `JobError` that names every variable looked at."""
    names = (job.spec.endpoint.key_env,) if job.spec.endpoint.key_env else KEY_VARIABLES
    for name in names:
        if value := os.environ.get(name, "").strip():
            return value
    unset = " and ".join(names) + (" are both unset" if len(names) == 2 else " is unset")
    raise JobError(f"no API key: {unset}", f"`export {names[0]}=…`, or try without one: `--offline`")


def _compile(path: Path, spec: JobFile, origins: Mapping[str, str]) -> Job:
    beside, prompt = path.parent, spec.prompt
    template = read_template(prompt.template, prompt.template_file, beside, f"{path}, [prompt] template")
    system = prompt.system
    if prompt.system_file is not None:
        system = read_text(prompt.system, prompt.system_file, beside, f"{path}, [prompt] system")
    model = spec.model
    params = Params(
        model=model.name.removeprefix("models/"),
        system=system,
        max_output_tokens=model.max_output_tokens,
        temperature=model.temperature,
        top_p=model.top_p,
        top_k=model.top_k,
        seed=model.seed,
        stop=tuple(model.stop),
        thinking=model.thinking,
        response_mime_type=model.response_mime_type,
        safety=tuple(sorted(_safety(name, value) for name, value in model.safety.items())),
    )
    reduce_template = reduce_params = None
    if spec.chunk and spec.reduce:
        if not template.mentions("text"):
            raise JobError(
                f"the template does not use {{{{ text }}}}, so the pieces would never be sent\n{template.where}",
                "with [chunk], `{{ text }}` is the piece of the text column",
            )
        reduce = spec.reduce
        reduce_template = read_template(reduce.template, reduce.template_file, beside, f"{path}, [reduce] template")
        if not reduce_template.mentions("parts"):
            raise JobError(
                f"the template does not use {{{{ parts }}}}, so nothing would be merged\n{reduce_template.where}",
                "`{{ parts }}` inserts the answers to the pieces",
            )
        reduce_params = replace(
            params,
            system=reduce.system if reduce.system is not None else system,
            max_output_tokens=reduce.max_output_tokens or params.max_output_tokens,
        )
    return Job(path.stem, path, spec, template, reduce_template, params, reduce_params, origins)


def _safety(name: str, value: str) -> tuple[str, str]:
    category = name.upper()
    return (category if category.startswith("HARM_CATEGORY_") else f"HARM_CATEGORY_{category}", value.upper())


def _other_jobs(path: Path) -> str:
    jobs = sorted(str(found) for found in Path("jobs").glob("*.toml"))
    close = difflib.get_close_matches(str(path), jobs, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]}?"
    return f"there are {', '.join(jobs)}" if jobs else "paths are relative to the directory you are in"


def _as_job_error(error: ValidationError, path: Path) -> JobError:
    # A misspelt key is also a missing one: the spelling is what helps.
    first = min(error.errors(include_url=False), key=lambda found: found["type"] != "extra_forbidden")
    # pydantic names the branch of a union as if it were a key.
    place = [str(part) for part in first["loc"] if not str(part).startswith("literal[")]
    section = f"[{place[0]}]" if place else "the job file"
    table = f"[{'.'.join(place[:-1])}]"
    name = place[-1] if place else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(place[:-1])
        close = difflib.get_close_matches(name, known, n=1)
        what = f"`{name}` is not a setting of {table}" if len(place) > 1 else f"[{name}] is not a section"
        return JobError(
            f"{what}\n{path}", f"did you mean `{close[0]}`?" if close else f"it knows {', '.join(sorted(known))}"
        )
    if first["type"] == "missing":
        what = f"{table} has no `{name}`" if len(place) > 1 else f"the section [{name}] is missing"
        return JobError(f"{what}\n{path}", "the README's job file reference shows every setting")
    message = first["msg"].removeprefix("Value error, ")
    where = f"{section} {'.'.join(place[1:])}".strip() if place else ""
    return JobError(f"{where + ': ' if where else ''}{message[0].lower() + message[1:]}\n{path}")


def _known_keys(place: list[str]) -> list[str]:
    model: type[BaseModel] = JobFile
    for part in place:
        annotation = model.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        model = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return list(model.model_fields)
