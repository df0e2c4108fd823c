"""The sections of a job file, each with its settings, what they mean and what is checked of each alone."""

import codecs
import io
import re
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.protocols import ProviderName
from pipeline.records import ALWAYS, RESET_ZONE, TAKEN_OVER, Counted, Takes, TakesOver
from pipeline.terminal import is_like_key

OUTPUT_SUFFIXES = (".parquet", ".csv", ".jsonl")
_MOST = 2**31 - 1
"""Of a number that is told to the service: its own have 32 bits."""
_MOST_PRICE = 1_000_000
_MOST_MB = 10**9


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _refuse_unreal(path: str) -> None:
    """Raise for a path that would be a directory of such a name here: only a shell, or a cloud, knows what is meant."""
    if "://" in path:
        raise ValueError(f"{path} is no path of a file on this machine")
    if path.startswith(("~", "$")) and "/" in path:
        raise ValueError(f"{path} begins with what only a shell fills in: write the whole path")


def _refuse_key(name: str | None) -> str | None:
    is_name = name is None or (name.isidentifier() and not name.startswith("AIza") and not is_like_key(name))
    if not is_name:  # do not show it: it may be the key
        raise ValueError("it is the name of a variable that holds the secret, as GEMINI_API_KEY, never the secret")
    return name


_PLACE_OF_KEY = re.compile(
    r"env:[A-Za-z_]\w*|keyring:[^/\s][^/]*/.*\S|gcp-secret:projects/[\w.:\-]+/secrets/[\w\-]+(?:/versions/\w+)?",
    re.ASCII,
)


class Input(_Section):
    """The table that is read."""

    path: str = Field(
        description="a file or a glob: .csv .tsv .parquet .jsonl; or a .parquet in cloud storage that polars reads"
    )
    id: str | None = Field(None, description="the column that names a row; must be unique. Default: the row number")
    text: str | None = Field(None, description="the column that may be chunked")
    where: str | None = Field(None, description="SQL predicate: only the rows for which it holds")
    encoding: str | None = Field(
        None,
        description="how a .csv, .tsv or .jsonl is encoded, as Python names it: `gb18030`, `utf-16`, `latin-1`."
        " Default: UTF-8",
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
                if codecs.lookup(name).name in ("idna", "punycode"):  # how names of hosts are written
                    raise ValueError
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
    overlap_tokens: int = Field(0, ge=0, description="tokens of the previous piece that the next one repeats, at most")

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
    max_output_tokens: int | None = Field(
        None, ge=1, le=_MOST, description="longest merged answer. Default: that of [model]"
    )


class Prices(_Section):
    """Own prices in USD per million tokens, for a model that the tables lack."""

    input: float = Field(ge=0, le=_MOST_PRICE)
    output: float = Field(ge=0, le=_MOST_PRICE)
    cached: float | None = Field(None, ge=0, le=_MOST_PRICE)


class ModelSection(_Section):
    """The model and its parameters; what is left out stays at the model's default."""

    name: str = Field(description="as `pipeline models` names it")
    max_output_tokens: int | None = Field(None, ge=1, le=_MOST, description="longest answer, thinking included")
    temperature: float | None = Field(None, ge=0, le=2, description="ignored by Gemini 3.6 and later")
    top_p: float | None = Field(None, ge=0, le=1, description="ignored by Gemini 3.6 and later")
    top_k: int | None = Field(None, ge=1, le=_MOST, description="ignored by Gemini 3.6 and later")
    seed: int | None = Field(
        None, ge=-(2**31), lt=2**31, description="makes answers repeatable, as far as the service can"
    )
    stop: list[str] = Field(default_factory=list, description="the answer ends before any of these texts")
    thinking: Literal["minimal", "low", "medium", "high", "xhigh"] | int | None = Field(
        None, description="a level, or a budget in tokens for Gemini 2.5 (0 off, -1 automatic)"
    )
    response_mime_type: Literal["text/plain", "application/json", "text/x.enum"] | None = Field(
        None, description='"application/json" makes the answer one JSON text'
    )
    safety: dict[str, str] = Field(
        default_factory=dict, description='threshold by category, e.g. { HARASSMENT = "BLOCK_ONLY_HIGH" }'
    )
    prices: Prices | None = Field(None, description="{ input, output, cached } in USD per million tokens")

    @field_validator("thinking")
    @classmethod
    def _is_a_budget(cls, thinking: str | int | None) -> str | int | None:
        if isinstance(thinking, int) and not -1 <= thinking <= _MOST:
            raise ValueError(f"{thinking} is no budget: 0 turns it off, -1 leaves it to the model")
        return thinking

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if {"", ".", ".."} & set(name.split("/")) or not name.isprintable() or name != name.strip():
            raise ValueError(f'"{name}" is no name of a model')  # it becomes a part of the address
        return name


class Endpoint(_Section):
    """Where the calls go."""

    provider: ProviderName = Field(
        "gemini",
        description="what is spoken there: Gemini's Developer API, OpenAI's chat completions, or Gemini on Vertex AI",
    )
    base_url: str | None = Field(
        None,
        description="a relay, server or emulator; `GOOGLE_GEMINI_BASE_URL`, `OPENAI_BASE_URL` or"
        " `GOOGLE_VERTEX_BASE_URL` wins over it. Default: Google's, OpenAI's, or Vertex AI's for the location",
    )
    api_version: Literal["v1", "v1beta"] = Field(
        "v1beta", description="v1beta knows more models; on Vertex AI it is v1beta1. Not for openai"
    )
    key_env: str | None = Field(
        None,
        description="variable that holds the key. Default: `GEMINI_API_KEY`, else `GOOGLE_API_KEY`; for openai"
        " `OPENAI_API_KEY`; for vertex it means express mode, which has a key and no project",
    )
    project: str | None = Field(
        None,
        description="Google Cloud project whose quota and bill it is; vertex only. Default: `GOOGLE_CLOUD_PROJECT`",
    )
    location: str | None = Field(
        None,
        description="a region such as `europe-west4`, `us`, `eu` or `global`; vertex only. Default:"
        " `GOOGLE_CLOUD_LOCATION`, else `global`",
    )
    key: str | None = Field(
        None,
        description="another place of the key, never the key: `keyring:SERVICE/NAME`,"
        " `gcp-secret:projects/P/secrets/S`, with `/versions/V` or the latest, or `env:NAME`, as `key_env`"
        " ([keys](keys.md))",
    )
    timeout_s: float = Field(300, gt=0, le=_MOST, description="longest wait for one answer, seconds")
    proxy: str | None = Field(
        None,
        description="`http://HOST:PORT`, `https://…`, `socks5://…` (names are looked up here) or `socks5h://…` (by the"
        ' proxy); `"none"` goes direct. Default: what the environment says',
    )
    proxy_env: str | None = Field(None, description="variable that holds the proxy's address, for one with a login")
    ca_bundle: str | None = Field(
        None, description="file of certificates in PEM that are trusted besides the usual ones, as a company's own root"
    )
    connect_timeout_s: float = Field(
        15, gt=0, le=600, description="longest wait for a connection: name, proxy and TLS included, seconds"
    )

    _named = field_validator("key_env", "proxy_env")(_refuse_key)

    @field_validator("proxy")
    @classmethod
    def _no_login(cls, proxy: str | None) -> str | None:
        if proxy is not None and "@" in proxy:
            raise ValueError("a login does not belong into a job file: name a variable that holds it all in proxy_env")
        return proxy

    @field_validator("ca_bundle")
    @classmethod
    def _is_a_file(cls, path: str | None) -> str | None:
        if path is not None:
            if not path or "\0" in path:
                raise ValueError("it is no path of a file")
            _refuse_unreal(path)
        return path

    @model_validator(mode="after")
    def _one_proxy(self) -> "Endpoint":
        if self.proxy is not None and self.proxy_env is not None:
            raise ValueError("proxy and proxy_env name two proxies: leave one out")
        return self

    @field_validator("key")
    @classmethod
    def _is_a_place(cls, key: str | None) -> str | None:
        if key is not None and (not _PLACE_OF_KEY.fullmatch(key) or is_like_key(key)):  # do not show it
            raise ValueError(
                "it names a place, as keyring:gemini/me, gcp-secret:projects/P/secrets/S or env:GEMINI_API_KEY,"
                " never the key itself"
            )
        return key

    @model_validator(mode="after")
    def _one_place(self) -> "Endpoint":
        if self.key is not None and self.key_env is not None:
            raise ValueError("key and key_env both say where the key is: leave one out")
        return self

    @field_validator("base_url")
    @classmethod
    def _not_empty(cls, url: str | None) -> str | None:
        if url == "":
            raise ValueError("it is empty; leave it out for the service's own")
        return url

    @field_validator("project", "location")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.:\-]{0,62}", name):  # a part of the address
            raise ValueError(f'"{name}" is none: it has small letters, digits and hyphens')
        return name

    @model_validator(mode="after")
    def _one_identity(self) -> "Endpoint":
        if self.provider == "vertex" and (self.key_env or self.key) and (self.project or self.location):
            raise ValueError("a key is for express mode, which has no project and no location: leave one of them out")
        return self


class LimitsSection(_Section):
    """What the project may use of this model, as granted; a limit left out is learned, 0 means there is none."""

    rpm: int | None = Field(None, ge=0, description="requests per minute")
    tpm: int | None = Field(None, ge=0, description="input tokens per minute")
    rpd: int | None = Field(None, ge=0, description="requests per day")
    concurrency: int | None = Field(None, ge=1, description="most calls in flight. Default: from the measured latency")
    tokens: Counted = Field(
        "input",
        description="what `tpm` counts of a request: `input`; `total`, with the answer; `reserved`, with the longest"
        " answer that it allows",
    )
    reset_zone: str = Field(RESET_ZONE, description="time zone at whose midnight the day's requests reset, e.g. `UTC`")

    @field_validator("reset_zone")
    @classmethod
    def _known_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (KeyError, ValueError, OSError):  # not there; not a name; a folder of names
            raise ValueError(f'"{name}" is no time zone; name one as "America/Los_Angeles" or "UTC"') from None
        return name


Cause = Literal[Takes, TakesOver]


class TargetSection(Endpoint):
    """One of several who answer, with all settings of `[endpoint]` too.

    What it leaves out is as in `[endpoint]`, `[model]` and `[limits]`.
    """

    name: str = Field(description="what the output's column `target` calls it", pattern=r"^[\w][\w .\-]{0,63}$")
    model: str | None = Field(None, description="the model that is asked there")
    limits: LimitsSection = Field(
        LimitsSection(),  # type: ignore[call-arg]
        description="as in `[limits]`, e.g. `{ rpm = 10, rpd = 500 }`",
    )
    prices: Prices | None = Field(None, description="as in `[model]`")
    price_factor: float = Field(1.0, gt=0, le=1000, description="times the price: what a relay adds, or takes off")
    same_project_as: str | None = Field(
        None, description="another target whose project it belongs to: two keys, one quota and one bill"
    )
    priority: int = Field(
        1, ge=1, le=1000, description="targets of a lower one are asked first. Default: 1, with `fallback` 2"
    )
    fallback: list[Cause] | None = Field(
        None,
        description="why it takes what others are asked first: `full` (more waits than they take in a minute),"
        " `day_quota`, `outage`, or an answer of theirs that is `blocked`, `truncated` or `too_long`. Default: the"
        " first three",
    )
    weight: float | None = Field(
        None, gt=0, le=1_000_000, description="its part of the requests, among targets of its priority that have one"
    )

    @property
    def rank(self) -> int:
        """Its priority."""
        return 2 if self.fallback is not None and "priority" not in self.model_fields_set else self.priority

    @property
    def takes(self) -> frozenset[Takes]:
        """Why it takes what waits for others; empty: it is asked only after their answers."""
        return ALWAYS if self.fallback is None else ALWAYS.intersection(self.fallback)

    @property
    def takes_over(self) -> frozenset[TakesOver]:
        """After which answers of others it is asked."""
        return frozenset(TAKEN_OVER).intersection(self.fallback or ())

    @model_validator(mode="after")
    def _ranked(self) -> "TargetSection":
        if self.fallback is not None and self.priority == 1 and "priority" in self.model_fields_set:
            raise ValueError("fallback says what it takes over from targets of a lower priority: there is none below 1")
        if self.fallback == []:
            raise ValueError("fallback is empty, so it would never be asked: name a cause, or leave it out")
        return self


class RouteSection(_Section):
    """Which targets answer which rows: the first rule that holds for a row; the last one is for all others."""

    where: str | None = Field(
        None,
        description="SQL condition on the row's columns and `input_tokens`, the estimate of what the templates insert"
        " from it; left out in the last rule",
    )
    targets: list[str] = Field(min_length=1, description="names of the targets that answer these rows")


class Budget(_Section):
    """Caps on spending."""

    max_usd: float | None = Field(None, gt=0, allow_inf_nan=False, description="this run never spends more than this")
    max_usd_per_day: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="all runs with this key on this machine spend no more, from 00:00 UTC on",
    )
    max_usd_per_month: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="all runs with this key on this machine spend no more, from the first of the month on, UTC",
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
    max_mb: float = Field(
        1000, gt=0, le=_MOST_MB, description="size of the file; answers used longest ago are thrown out"
    )

    _named = field_validator("password_env")(_refuse_key)

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
        _refuse_unreal(self.path)
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
    target: list[TargetSection] = Field(default_factory=list, max_length=64)
    route: list[RouteSection] = Field(default_factory=list, max_length=64)
    budget: Budget = Budget()  # type: ignore[call-arg]
    cache: Cache | None = None
    output: Output

    @model_validator(mode="after")
    def _targets_are_told_apart(self) -> "JobFile":
        names = [target.name for target in self.target]
        for number, target in enumerate(self.target):
            if target.name in names[:number]:
                raise ValueError(f"two targets are called {target.name}")
            if target.same_project_as is not None and target.same_project_as not in names[:number]:
                raise ValueError(f"target {target.name}: same_project_as must name a target before it")
        return self

    @model_validator(mode="after")
    def _routes_lead_somewhere(self) -> "JobFile":
        if not self.route:
            return self
        names = {target.name for target in self.target}
        for number, route in enumerate(self.route, 1):
            if unknown := set(route.targets) - names:
                raise ValueError(f"[[route]] number {number} names {min(unknown)!r}, which is no [[target]]")
            if (route.where is None) != (number == len(self.route)):
                raise ValueError(
                    "the last [[route]] is for all rows that no other takes: it has no `where`; each before it has one"
                )
        if idle := names.difference(*(route.targets for route in self.route)):
            raise ValueError(f"no [[route]] leads to target {min(idle)}")
        return self

    @model_validator(mode="after")
    def _chunking_is_whole(self) -> "JobFile":
        if (self.chunk is None) != (self.reduce is None):
            raise ValueError("[chunk] and [reduce] go together")
        if self.chunk and self.input.text is None:
            raise ValueError("[chunk] needs [input] text: the column that is cut")
        return self
