"""The section of a job file that says of what a person should hear while a run goes on, and where."""

import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, WithJsonSchema, field_validator, model_validator

from pipeline.sections.base import Section, refuse_key
from pipeline.terminal import is_like_key

PostFormat = Literal["json", "slack", "feishu", "dingtalk", "discord"]
_SIGNED: tuple[PostFormat, ...] = ("feishu", "dingtalk")
_SECRET = re.compile(r"(?=.*\d)(?=.*[a-z])(?=.*[A-Z])\w{16,}")  # as robots have them; so no variable is called
_SECRET_LIKE = re.compile(r"(?=[A-Za-z_\-]*\d)(?=[\d_\-]*[A-Za-z])[\w\-]{16,}")


def _percent(value: float | bool) -> float | bool:
    if value is True or not 0 <= value < 100:
        raise ValueError("it is a number from 0 to below 100, or false")
    return value


def _span(value: float | bool) -> float | bool:
    if value is not False and (value is True or value <= 0):
        raise ValueError("it is a number above 0, or false")
    return value


_OFF = {"const": False}
Percent = Annotated[
    float | bool,
    AfterValidator(_percent),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0, "exclusiveMaximum": 100}, _OFF]}),
]
Span = Annotated[
    float | bool,
    AfterValidator(_span),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, _OFF]}),
]


class Alerts(Section):
    """Of what a person should hear while a run goes on, and where; `false` turns one off ([alerts](runs.md#alerts))."""

    error_percent: Percent = Field(
        5.0, description="when more of the last 1,000 rows, and at least 5, ended as `error`, `blocked` or `invalid`"
    )
    truncated_percent: Percent = Field(10.0, description="when more of them, and at least 5, were cut: `truncated`")
    budget_percent: Percent = Field(80.0, description="when so much of a cap of `[budget]` or of `--max-cost` is spent")
    day_quota_percent: Percent = Field(
        False, examples=[90], description="when so much of a day's requests (`rpd`) is used"
    )
    latency_s: Span = Field(False, examples=[60], description="when half of the last 100 calls took longer, seconds")
    stalled_min: Span = Field(
        10.0, description="when no call was answered for so long, but for waits for the day's quota and for batches"
    )
    webhook: str | None = Field(
        None,
        examples=["https://alerts.example.com/pipeline"],
        description="`http://…` or `https://…` that each alert, and how the run ended, is posted to",
    )
    webhook_env: str | None = Field(
        None,
        examples=["ALERTS_WEBHOOK"],
        description="variable that holds that address, for one that is a secret, as those of chats are",
    )
    webhook_secret_env: str | None = Field(
        None,
        examples=["ALERTS_SECRET"],
        description="variable that holds the secret of a robot that wants posts signed: DingTalk's (加签) or Feishu's"
        " (签名校验)",
    )
    format: PostFormat = Field("json", description="what is posted: fields of our own, or what a chat takes")

    _named = field_validator("webhook_env", "webhook_secret_env")(refuse_key)

    @field_validator("webhook_secret_env")
    @classmethod
    def _is_no_secret(cls, name: str | None) -> str | None:
        return refuse_key(name and _SECRET.sub("-", name))

    @field_validator("webhook")
    @classmethod
    def _is_an_address(cls, url: str | None) -> str | None:
        if url is None:
            return None
        if trouble := address_trouble(url):
            raise ValueError(trouble)
        if "@" in url or is_like_key(url) or _SECRET_LIKE.search(url.partition("://")[2].partition("/")[2]):
            raise ValueError(
                "a secret does not belong into a job file: name a variable that holds the whole address in webhook_env"
            )
        return url

    @model_validator(mode="after")
    def _one_address(self) -> "Alerts":
        if self.webhook is not None and self.webhook_env is not None:
            raise ValueError("webhook and webhook_env name two addresses: leave one out")
        return self

    @model_validator(mode="after")
    def _something_to_sign(self) -> "Alerts":
        if self.webhook_secret_env is not None:
            if self.format not in _SIGNED:
                raise ValueError(f'posts of "{self.format}" have no signature, those of feishu, dingtalk do')
            if self.webhook is None and self.webhook_env is None:
                raise ValueError("webhook_secret_env signs posts: name their address, in webhook_env")
        return self


def address_trouble(url: str) -> str:
    """Why nothing can be posted to `url`, without showing it; empty where it can."""
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    is_plain = url.isascii() and url.isprintable() and " " not in url
    return "" if is_good and is_plain else "it is no address: write http://HOST/PATH or https://HOST/PATH"
