"""How requests are named by the GenAI semantic conventions of OpenTelemetry, 0.1 of their own repository (2026-11)."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import NamedTuple

from pipeline.records import Failure
from pipeline.targets import provider_of

_PROVIDERS: Mapping[str, str] = {"gemini": "gcp.gemini", "vertex": "gcp.vertex_ai", "openai": "openai"}
_OPERATIONS: Mapping[str, str] = {"openai": "chat"}
_STATUSES = frozenset(status.value for status in HTTPStatus)


class Address(NamedTuple):
    """Where a service is; `port` is None where that is not known."""

    host: str
    port: int | None


def provider_name(provider: str) -> str:
    """`gen_ai.provider.name` of who speaks a protocol: whose telemetry it is like, whoever answers."""
    return _PROVIDERS[provider]


def operation_name(provider: str) -> str:
    """`gen_ai.operation.name` of a protocol's requests."""
    return _OPERATIONS.get(provider, "generate_content")


def address_of(endpoint: str) -> Address:
    """`server.address` and `server.port` of a target's endpoint, which names a port where it is not the usual one."""
    _, _, place = endpoint.partition("@")
    host, _, port = place.rpartition(":")
    if host and port.isdecimal():
        return Address(host.strip("[]"), int(port))
    return Address(place.strip("[]"), 443 if "." in place else None)


def error_type(failure: Failure) -> str:
    """`error.type`: the HTTP status of a response, else the cause; a status that no standard knows is `_OTHER`."""
    if failure.http_status is None or failure.http_status < HTTPStatus.BAD_REQUEST:
        return failure.error_kind
    return str(failure.http_status) if failure.http_status in _STATUSES else "_OTHER"


def speaker_of(endpoint: str) -> str:
    """The protocol of an endpoint; that of an answer without one is Gemini's."""
    provider = provider_of(endpoint)
    return provider if provider in _PROVIDERS else "gemini"
