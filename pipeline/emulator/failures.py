"""The faults that are a whole response of their own: errors, pages of gateways, refusals for money."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from pipeline.emulator import bodies
from pipeline.emulator.http import Call, Response

_FREE_TEXT = "text/plain; charset=UTF-8"


@dataclass(frozen=True, slots=True)
class Failure:
    """A complete response, in one or more wordings."""

    status: int
    variants: tuple[bytes, ...]
    content_type: str = bodies.JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def response(self, luck: float) -> Response:
        """The response, in the wording that a number in [0, 1) picks."""
        body = self.variants[int(luck * len(self.variants))]
        return Response(self.status, body, self.content_type, headers=self.headers)


def _json(*errors: Any) -> tuple[bytes, ...]:
    return tuple(orjson.dumps(error) for error in errors)


def _relay(message: str, kind: str, code: str | int | None = None) -> tuple[bytes, ...]:
    """An error as relays write it."""
    return _json({"error": {"message": message, "type": kind, "param": "", "code": code}})


def _busy(*retry_after: bytes) -> Failure:
    return Failure(
        503, _json(bodies.error(503, bodies.OVERLOADED)), headers=tuple((b"retry-after", at) for at in retry_after)
    )


_NESTED = orjson.dumps(bodies.error(503, bodies.OVERLOADED)).decode()
_LOW_BALANCE = "Your credit balance is too low to access the API. Please go to Plans & Billing to purchase credits."
_NO_QUOTA = (
    "You exceeded your current quota, please check your plan and billing details. For more information on this error,"
    " read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors."
)
_METRIC = (
    f"\n* Quota exceeded for metric: {bodies.SERVICE}/generate_requests_per_model, limit: 60, model: gemini"
    "\nPlease retry in 1.5s."
)
_FILTERED = (
    "The response was filtered due to the prompt triggering Azure OpenAI's content management policy. Please modify"
    " your prompt and retry."
)

FAILURES: Mapping[str, Failure] = {
    "400": Failure(400, _json(bodies.error(400, "Request contains an invalid argument."))),
    "402": Failure(402, _relay("Insufficient credits. Add more to continue.", "payment_required", 402)),
    "403": Failure(403, _json(bodies.error(403, bodies.LEAKED))),
    "408": Failure(408, (b"Request Timeout",), _FREE_TEXT),
    "413": Failure(413, (bodies.html_page(413, "Request Entity Too Large"),), bodies.HTML),
    "429": Failure(429, _json(bodies.error(429, bodies.EXHAUSTED))),
    "499": Failure(499, _json(bodies.error(499, bodies.CANCELLED))),
    "500": Failure(500, _json(bodies.error(500, bodies.INTERNAL))),
    "503": Failure(503, _json(bodies.error(503, bodies.OVERLOADED), bodies.error(503, bodies.HIGH_DEMAND))),
    "504": Failure(504, _json(bodies.error(504, bodies.DEADLINE))),
    "html502": Failure(502, (bodies.html_page(502, "Server Error"),), bodies.HTML),
    "array429": Failure(429, _json([bodies.error(429, bodies.EXHAUSTED)])),
    "bare429": Failure(429, _json(bodies.error(429, bodies.QUOTA_EXCEEDED, [bodies.help_link()]))),
    "nested503": Failure(503, _json({"error": {"code": 503, "message": _NESTED, "status": "Service Unavailable"}})),
    "location": Failure(400, _json(bodies.error(400, bodies.LOCATION, status="FAILED_PRECONDITION"))),
    "garbage": Failure(200, (b"<html>upstream connect error", b"OK", b'{"candidates": [{"content"', b"")),
    "prepaid": Failure(429, _json(bodies.error(429, bodies.PREPAID))),
    "balance400": Failure(400, _relay(_LOW_BALANCE, "invalid_request_error")),
    "balance429": Failure(429, _relay("账户余额不足，请充值后再试", "new_api_error", "insufficient_user_quota")),
    "balance200": Failure(200, _json({"code": 30001, "message": "余额不足，请充值", "data": None})),
    "no_channel": Failure(503, _relay("当前分组 default 下对于该模型无可用渠道", "new_api_error", "model_not_found")),
    "no_quota429": Failure(429, _relay(_NO_QUOTA, "insufficient_quota", "insufficient_quota")),
    "busy429": Failure(429, _relay("当前分组上游负载已饱和，请稍后再试", "insufficient_quota", "insufficient_quota")),
    "quota500": Failure(500, _relay(bodies.QUOTA_EXCEEDED + _METRIC, "upstream_error", "do_request_failed")),
    "quota502": Failure(502, _json([bodies.error(429, bodies.EXHAUSTED)])),
    "filter400": Failure(400, _relay(_FILTERED, "", "content_filter")),
    "expired401": Failure(401, _relay("该令牌已过期", "new_api_error")),
    "wait_day": _busy(b"86400"),
    "wait_2099": _busy(b"Thu, 31 Dec 2099 23:59:59 GMT"),
    "wait_2h": Failure(503, _json(bodies.error(503, bodies.OVERLOADED, [bodies.retry_info("7200s")]))),
}


def failure(kind: str | None, luck: float, call: Call) -> Response | None:
    """The response of a fault that replaces the answer; None for the others."""
    if kind in ("reset", "hang"):
        return Response(0, b"", broken=kind)
    if kind == "echo_error":
        return Response(500, orjson.dumps({"error": {"code": 500, "message": f"upstream failed: {call.shown()}"}}))
    found = FAILURES.get(kind or "")
    return None if found is None else found.response(luck)
