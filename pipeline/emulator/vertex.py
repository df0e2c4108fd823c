"""Vertex AI's way to the same models: its paths, its access tokens, and its words for what it refuses.

`POST /token` gives an access token to whoever asks, as Google's token server does to a service account. One that was
given here ends; any other is good unless it begins with `invalid`. A project that begins with `denied` is denied.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.emulator import bodies, catalog, wire
from pipeline.emulator.http import Call, Response
from pipeline.emulator.messages import Refusal, parse
from pipeline.emulator.options import EmulatorOptions
from pipeline.emulator.schema import GENERATE_REQUEST, VERTEX_COUNT_REQUEST

TOKEN_PATH = "/token"
_SERVICE = "aiplatform.googleapis.com"
_PATH = re.compile(
    r"/(v1|v1beta1)/(?:projects/([^/]+)/locations/([^/]+)/)?publishers/google/models(?:/([^/:]+)(?::(\w+))?)?"
)
_CACHES = re.compile(r"/(v1|v1beta1)/projects/([^/]+)/locations/([^/]+)/cachedContents")
_RPC = {
    ("POST", "generateContent"): "PredictionService.GenerateContent",
    ("POST", "streamGenerateContent"): "PredictionService.StreamGenerateContent",
    ("POST", "countTokens"): "PredictionService.CountTokens",
    ("GET", "models.list"): "ModelGardenService.ListPublisherModels",
    ("GET", "models.get"): "ModelGardenService.GetPublisherModel",
}
_MOST_TOKENS = 10_000  # given, and remembered

_INVALID = (
    "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid "
    "authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project."
)
_MISSING = _INVALID.replace("had invalid authentication credentials", "is missing required authentication credential")
_NO_KEYS = (
    "API keys are not supported by this API. Expected OAuth2 access token or other authentication credentials that "
    "assert a principal. See https://cloud.google.com/docs/authentication"
)
BUSY = (
    "Resource exhausted. Please try again later. Please refer to "
    "https://cloud.google.com/vertex-ai/generative-ai/docs/error-code-429 for more details."
)
_METRICS = {
    "requests": "generate_content_requests_per_minute_per_project_per_base_model",
    "token_count": "generate_content_input_tokens_per_minute_per_base_model",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a path asks for; `project` is empty in express mode, and `model` in a listing."""

    version: str
    project: str
    location: str
    model: str
    method: str
    rpc: str

    @property
    def resource(self) -> str:
        """The model's full name."""
        return f"projects/{self.project}/locations/{self.location}/publishers/google/models/{self.model}"


def asked(call: Call) -> Asked | None:
    """What is asked of Vertex AI; None when it is another service that is asked."""
    match = _PATH.fullmatch(call.path)
    if match is None:
        return None
    version, project, location, model, method = (part or "" for part in match.groups())
    method = method or ("models.get" if model else "models.list")
    rpc = _RPC.get((call.method, method))
    if rpc is None or (project and method.startswith("models.")):
        raise bodies.unknown_path(call.path)
    return Asked(version, project, location, model, method, f"google.cloud.aiplatform.{version}.{rpc}")


def asked_of_caches(call: Call) -> Asked | None:
    """The same of a request for `cachedContents`."""
    match = _CACHES.match(call.path)
    if match is None:
        return None
    version, project, location = match.groups()
    return Asked(version, project, location, "", "cachedContents", f"google.cloud.aiplatform.{version}.CacheService")


class Gatekeeper:
    """Gives access tokens, and knows when they end."""

    def __init__(self, options: EmulatorOptions, clock: Callable[[], float]) -> None:
        self._options, self._clock = options, clock
        self._ends: dict[str, float] = {}

    def token(self) -> dict[str, Any]:
        """The body that gives a new token."""
        token = f"ya29.emulator-{len(self._ends)}"
        if len(self._ends) < _MOST_TOKENS:
            self._ends[token] = self._clock() + self._options.token_s
        return {"access_token": token, "expires_in": round(self._options.token_s), "token_type": "Bearer"}

    def payer(self, call: Call, asked: Asked) -> str:
        """Whose quota it is; raises `Refusal` for a credential that is none, of another kind, over or denied."""
        kind, _, token = call.header(b"authorization").partition(" ")
        key = call.header(b"x-goog-api-key") or call.parameter("key")
        info = {"service": _SERVICE, "method": asked.rpc}
        if kind.lower() == "bearer":
            if token.startswith("invalid"):
                raise bodies.refusal(401, _INVALID, [bodies.error_info("ACCESS_TOKEN_TYPE_UNSUPPORTED", info)])
            if self._clock() >= self._ends.get(token, self._clock() + 1):
                raise bodies.refusal(401, _INVALID, [bodies.error_info("ACCESS_TOKEN_EXPIRED", info)])
        elif not key or asked.project or asked.method.startswith("models."):
            raise bodies.refusal(401, _NO_KEYS if key else _MISSING, [bodies.error_info("CREDENTIALS_MISSING", info)])
        elif key not in self._options.keys if self._options.keys else key.startswith("invalid"):
            raise bodies.bad_key(service=_SERVICE)
        if asked.project.startswith("denied"):
            permission = {"permission": "aiplatform.endpoints.predict", "resource": asked.resource}
            raise bodies.refusal(
                403,
                f"Permission 'aiplatform.endpoints.predict' denied on resource '//{_SERVICE}/{asked.resource}' "
                "(or it may not exist).",
                [{**bodies.error_info("IAM_PERMISSION_DENIED", permission), "domain": _SERVICE}],
            )
        return f"{asked.project}/{asked.location}" if asked.project else key or ""


def unknown_model(asked: Asked) -> Refusal:
    """404: no such model, or not for this project at this location."""
    return bodies.refusal(
        404,
        f"Publisher Model `{asked.resource}` was not found or your project does not have access to it. Please ensure "
        "you are using a valid model version. For more information, see: "
        "https://cloud.google.com/vertex-ai/generative-ai/docs/learn/model-versions",
    )


def listing() -> dict[str, Any]:
    """The body of a list of what Google publishes: one page."""
    return {"publisherModels": [published(model.name) for model in catalog.models_of("v1")]}


def published(name: str) -> dict[str, Any]:
    """The body of one of them."""
    return {"name": f"publishers/google/models/{name}", "versionId": "default", "launchStage": "GA"}


def read_count(body: bytes) -> wire.Fields:
    """Read a `countTokens` body, which is the request itself."""
    fields: wire.Fields = parse(VERTEX_COUNT_REQUEST, body)
    _check_roles(fields)
    return fields


async def with_roles(call: Call) -> Call:
    """The same call; raises `Refusal` for a turn without a role, which the Developer API takes for the user's."""
    body = await call.body()
    _check_roles(parse(GENERATE_REQUEST, body))

    async def again() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    return replace(call, receive=again)


def _check_roles(fields: Mapping[str, Any]) -> None:
    if any(not content.get("role") for content in fields.get("contents") or ()):
        raise bodies.refusal(400, "Please use a valid role: user, model.")


def worded(refusal: Refusal, model: str) -> Refusal:
    """The refusal of a model in Vertex AI's words: quotas by their metric alone, no parentheses around a limit."""
    error = refusal.body["error"] if isinstance(refusal.body, dict) else {}
    message = error.get("message", "")
    if refusal.status == 429 and (metric := next((_METRICS[name] for name in _METRICS if name in message), None)):
        return bodies.refusal(
            429,
            f"Quota exceeded for {_SERVICE}/{metric} with base model: {model}. Please submit a quota increase request. "
            "https://cloud.google.com/vertex-ai/docs/generative-ai/quotas-genai.",
        )
    if refusal.status == 429:
        return bodies.refusal(429, BUSY)
    return Refusal(refusal.status, {"error": {**error, "message": re.sub(r"\((\d+)\)\.$", r"\1.", message)}})


def answered(response: Response) -> Response:
    """The response of a model as Vertex AI sends it: what it says of the tier, and of being short of capacity."""
    if response.status == 429:
        return replace(response, body=response.body.replace(bodies.EXHAUSTED.encode(), BUSY.encode()))
    if response.status != 200 or response.tier is None:
        return response
    traffic = b'"trafficType":"ON_DEMAND"'

    def said(body: bytes) -> bytes:
        return re.sub(rb'"serviceTier":"\w+"', traffic, body)

    return replace(response, body=said(response.body), frames=tuple(map(said, response.frames)), tier=None)
