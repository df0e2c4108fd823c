"""The sections of a job file that say who answers: where the calls go, how many may, and which target takes which."""

import re
from typing import Literal, get_args
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator, model_validator

from pipeline.protocols import ProviderName
from pipeline.records import ALWAYS, RESET_ZONE, TAKEN_OVER, Counted, LaneChoice, Takes, TakesOver
from pipeline.sections.asked import Prices
from pipeline.sections.base import MOST, Section, refuse_key, refuse_unreal
from pipeline.terminal import is_like_key

_PLACE_OF_KEY = re.compile(
    r"env:[A-Za-z_]\w*|keyring:[^/\s][^/]*/.*\S|gcp-secret:projects/[\w.:\-]+/secrets/[\w\-]+(?:/versions/\w+)?",
    re.ASCII,
)


class Endpoint(Section):
    """Where the calls go."""

    provider: ProviderName = Field(
        "gemini",
        description="what is spoken there: Gemini's Developer API, OpenAI's chat completions, or Gemini on Vertex AI",
    )
    base_url: str | None = Field(
        None,
        examples=["https://relay.example.com"],
        description="a relay, server or emulator; `GOOGLE_GEMINI_BASE_URL`, `OPENAI_BASE_URL` or"
        " `GOOGLE_VERTEX_BASE_URL` wins over it. Default: Google's, OpenAI's, or Vertex AI's for the location",
    )
    api_version: Literal["v1", "v1beta"] = Field(
        "v1beta", description="v1beta knows more models; on Vertex AI it is v1beta1. Not for openai"
    )
    key_env: str | None = Field(
        None,
        examples=["MY_GEMINI_KEY"],
        description="variable that holds the key. Default: `GEMINI_API_KEY`, else `GOOGLE_API_KEY`; for openai"
        " `OPENAI_API_KEY`; for vertex it means express mode, which has a key and no project",
    )
    project: str | None = Field(
        None,
        examples=["my-project"],
        description="Google Cloud project whose quota and bill it is; vertex only. Default: `GOOGLE_CLOUD_PROJECT`",
    )
    location: str | None = Field(
        None,
        examples=["europe-west4"],
        description="a region such as `europe-west4`, `us`, `eu` or `global`; vertex only. Default:"
        " `GOOGLE_CLOUD_LOCATION`, else `global`",
    )
    key: str | None = Field(
        None,
        examples=["keyring:gemini/me"],
        description="another place of the key, never the key: `keyring:SERVICE/NAME`,"
        " `gcp-secret:projects/P/secrets/S`, with `/versions/V` or the latest, or `env:NAME`, as `key_env`"
        " ([keys](keys.md))",
    )
    timeout_s: float = Field(
        300,
        gt=0,
        le=MOST,
        description="longest wait for one answer, seconds; with [model] stream for each piece of it; in flex at"
        " least 900",
    )
    proxy: str | None = Field(
        None,
        examples=["socks5h://127.0.0.1:1080"],
        description="the way to the service: `http://HOST:PORT`, `https://…`, `socks5://…` (names are looked up here)"
        ' or `socks5h://…` (by the proxy); `"none"` goes direct. Default: what the environment says',
    )
    proxy_env: str | None = Field(
        None, examples=["MY_PROXY"], description="variable that holds the proxy's address, for one with a login"
    )
    ca_bundle: str | None = Field(
        None,
        examples=["company-root.pem"],
        description="file of certificates in PEM that are trusted besides the usual ones, as a company's own root",
    )
    connect_timeout_s: float = Field(
        15, gt=0, le=600, description="longest wait for a connection: name, proxy and TLS included, seconds"
    )

    _named = field_validator("key_env", "proxy_env")(refuse_key)

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
            refuse_unreal(path)
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


class LimitsSection(Section):
    """What the project may use of this model, as granted; a limit left out is learned, 0 means there is none."""

    rpm: int | None = Field(None, ge=0, examples=[1000], description="requests per minute")
    tpm: int | None = Field(None, ge=0, examples=[1_000_000], description="input tokens per minute")
    rpd: int | None = Field(None, ge=0, examples=[10_000], description="requests per day")
    concurrency: int | None = Field(
        None,
        ge=1,
        examples=[64],
        description="most calls in flight, of all workers together. Default: from the measured latency;"
        " where nothing limits requests 64 for each worker",
    )
    tokens: Counted = Field(
        "input",
        description="what `tpm` counts of a request: `input`; `total`, with the answer; `reserved`, with the longest"
        " answer that it allows",
    )
    batch_tokens: int | None = Field(
        None,
        ge=1,
        examples=[10_000_000],
        description="input tokens that may wait in batches at once, as AI Studio shows them; learned",
    )
    reset_zone: str = Field(
        RESET_ZONE, examples=["UTC"], description="time zone at whose midnight the day's requests reset, e.g. `UTC`"
    )

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

    name: str = Field(
        examples=["free"], description="what the output's column `target` calls it", pattern=r"^[\w][\w .\-]{0,63}$"
    )
    model: str | None = Field(None, examples=["gemini-3.5-flash-lite"], description="the model that is asked there")
    limits: LimitsSection = Field(
        LimitsSection(),  # type: ignore[call-arg]
        examples=[{"rpm": 10, "rpd": 500}],
        description="as in `[limits]`, e.g. `{ rpm = 10, rpd = 500 }`",
    )
    lane: LaneChoice | None = Field(None, examples=["batch"], description="as in `[model]`")
    prices: Prices | None = Field(None, examples=[{"input": 0.25, "output": 1.5}], description="as in `[model]`")
    price_factor: float = Field(1.0, gt=0, le=1000, description="times the price: what a relay adds, or takes off")
    same_project_as: str | None = Field(
        None,
        examples=["free"],
        description="another target whose project it belongs to: two keys, one quota and one bill",
    )
    priority: int = Field(
        1, ge=1, le=1000, description="targets of a lower one are asked first. Default: 1, with `fallback` 2"
    )
    fallback: list[Cause] | None = Field(
        None,
        examples=[["full", "day_quota"]],
        description="why it takes what others are asked first: `full` (more waits than they take in a minute),"
        " `day_quota`, `outage`, `deadline` (they would not be done by `run --by TIME`), or an answer of theirs that is"
        " `blocked`, `truncated` or `too_long`, or for which a `check` does not hold. Default: the first three",
    )
    weight: float | None = Field(
        None,
        gt=0,
        le=1_000_000,
        examples=[2],
        description="its part of the requests, among targets of its priority that have one",
    )

    @property
    def rank(self) -> int:
        """Its priority."""
        return 2 if self.fallback is not None and "priority" not in self.model_fields_set else self.priority

    @property
    def takes(self) -> frozenset[Takes]:
        """Why it takes what waits for others; empty: it is asked only after their answers."""
        return ALWAYS if self.fallback is None else frozenset(get_args(Takes)).intersection(self.fallback)

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


class RouteSection(Section):
    """Which targets answer which rows: the first rule that holds for a row; the last one is for all others."""

    where: str | None = Field(
        None,
        min_length=1,
        examples=["input_tokens > 2000"],
        description="SQL condition on the row's columns and `input_tokens`, the estimate of what the templates insert"
        " from it; left out in the last rule",
    )
    targets: list[str] = Field(
        min_length=1, examples=[["free", "paid"]], description="names of the targets that answer these rows"
    )
