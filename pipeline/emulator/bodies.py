"""Error bodies as the service sends them, word for word where one was recorded."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.emulator.messages import Refusal

HTML = "text/html; charset=UTF-8"
JSON = "application/json; charset=UTF-8"
SERVICE = "generativelanguage.googleapis.com"
_RPC = "type.googleapis.com/google.rpc."

CANONICAL: Mapping[int, str] = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}

OVERLOADED = "The model is overloaded. Please try again later."
HIGH_DEMAND = (
    "This model is currently experiencing high demand. Spikes in demand are usually temporary. Please try again later."
)
INTERNAL = (
    "An internal error has occurred. Please retry or report in "
    "https://developers.generativeai.google/guide/troubleshooting"
)
DEADLINE = "Deadline expired before operation could complete."
CANCELLED = "The operation was cancelled."
EXHAUSTED = "Resource has been exhausted (e.g. check quota)."
PREPAID = (
    "Your prepayment credits are depleted. Please go to AI Studio at https://ai.studio/projects to manage your "
    "project and billing."
)
LEAKED = "Your API key was reported as leaked. Please use another API key."
LOCATION = "User location is not supported for the API use."
QUOTA_EXCEEDED = (
    "You exceeded your current quota, please check your plan and billing details. For more information on this "
    "error, head to: https://ai.google.dev/gemini-api/docs/rate-limits. To monitor your current usage, head to: "
    "https://ai.dev/rate-limit. "
)
_BAD_KEY = "API key not valid. Please pass a valid API key."
_NO_KEY = (
    "Method doesn't allow unregistered callers (callers without established identity). Please use API Key or other "
    "form of API consumer identity to call this API."
)
_WRONG_CREDENTIAL = (
    "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid "
    "authentication credential. See https://developers.google.com/identity/sign-in/web/devconsole-project."
)


def error(code: int, message: str, details: Sequence[object] = (), status: str | None = None) -> dict[str, Any]:
    """The error envelope; an empty `details` is left out."""
    body: dict[str, Any] = {"code": code, "message": message, "status": status or CANONICAL[code]}
    if details:
        body["details"] = list(details)
    return {"error": body}


def refusal(code: int, message: str, details: Sequence[object] = ()) -> Refusal:
    """The same, ready to be raised."""
    return Refusal(code, error(code, message, details))


def no_key() -> Refusal:
    """403: neither header nor query names a key."""
    return refusal(403, _NO_KEY)


def bad_key(said: str = _BAD_KEY, service: str = SERVICE) -> Refusal:
    """400, not 401 or 403: the key is not one of the service's, or no longer."""
    return refusal(
        400,
        said,
        [
            error_info("API_KEY_INVALID", {"service": service}),
            {"@type": f"{_RPC}LocalizedMessage", "locale": "en-US", "message": said},
        ],
    )


def wrong_credential(method: str) -> Refusal:
    """401: a bearer token where an API key belongs."""
    info = {
        "@type": f"{_RPC}ErrorInfo",
        "reason": "ACCESS_TOKEN_TYPE_UNSUPPORTED",
        "metadata": {"method": method, "service": SERVICE},
    }
    return refusal(401, _WRONG_CREDENTIAL, [info])


def unknown_model(name: str, version: str, method: str) -> Refusal:
    """404: no such model, or not for this method."""
    return refusal(
        404,
        f"models/{name} is not found for API version {version}, or is not supported for {method}. "
        "Call ModelService.ListModels to see the list of available models and their supported methods.",
    )


def retired_model(name: str, successor: str) -> Refusal:
    """404: the model was shut down."""
    return refusal(
        404, f"This model models/{name} is no longer available. Please update your code to use models/{successor}"
    )


def unknown_path(path: str) -> Refusal:
    """404: no such method."""
    return refusal(404, f"The requested URL {path} was not found on this server.")


def too_many_tokens(limit: int) -> Refusal:
    """400: the prompt is longer than the model's context."""
    return refusal(400, f"The input token count exceeds the maximum number of tokens allowed ({limit}).")


def error_info(reason: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The machine-readable cause of an error."""
    return {"@type": f"{_RPC}ErrorInfo", "reason": reason, "domain": "googleapis.com", "metadata": dict(metadata)}


def help_link() -> dict[str, Any]:
    """The pointer to the quota pages."""
    link = {
        "description": "Learn more about Gemini API quotas",
        "url": "https://ai.google.dev/gemini-api/docs/rate-limits",
    }
    return {"@type": f"{_RPC}Help", "links": [link]}


def quota_failure(violations: Sequence[object]) -> dict[str, Any]:
    """Which quotas were violated."""
    return {"@type": f"{_RPC}QuotaFailure", "violations": list(violations)}


def retry_info(delay: str) -> dict[str, Any]:
    """When to come back; a protobuf duration such as `34s`."""
    return {"@type": f"{_RPC}RetryInfo", "retryDelay": delay}


def html_page(status: int, title: str) -> bytes:
    """The page of a front end that knows nothing of JSON."""
    return (
        f"<!DOCTYPE html>\n<html lang=en>\n<meta charset=utf-8>\n<title>Error {status} ({title})!!1</title>\n"
        f"<p><b>{status}.</b> <ins>That’s an error.</ins>\n"
        "<p>The server encountered a temporary error and could not complete your request.<p>Please try again in 30 "
        "seconds. <ins>That’s all we know.</ins>\n"
    ).encode()
