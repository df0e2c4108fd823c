"""Google's OAuth access tokens: found as google-auth finds credentials, sent over our own wire, renewed in time.

A token lives for an hour, a run for a night. `Tokens` knows when to ask for the next; `google_tokens` asks google-auth.
"""

import logging
import os
import time
import warnings
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC
from math import inf
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import httpx

from pipeline.errors import AuthError, JobError
from pipeline.installed import installing
from pipeline.keys.diagnosis import cure_of
from pipeline.providers.failures import clean
from pipeline.providers.transport import Lost, Wire
from pipeline.records import Failure

AHEAD_S = 225.0
"""A token is renewed so long before it ends, as google-auth does: a metadata server has no new one much sooner."""
AGAIN_S = 30.0
"""Between two attempts to renew a token that is still good."""
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_USED = 0.5
"""Part of its life that a token is used at least: one of seconds would be renewed with every request."""
_ASK_TIMEOUT_S = 30.0
"""Longest wait for a token server."""


@dataclass(frozen=True, slots=True)
class Token:
    """What a request bears; `ends_at` in epoch seconds."""

    text: str = field(repr=False)
    ends_at: float = inf


Fetch = Callable[[], Awaitable[Token | Failure]]
"""Gets a new token; never raises for a failure."""


class Tokens:
    """The tokens of one identity; `headers` go with every request that bears one.

    While a token is good, all but the one who renews it go on with it, and a renewal that fails is tried again after
    `AGAIN_S`; `on_trouble` is told of the first. Once it has ended, all wait for the same renewal, and get its failure.
    """

    def __init__(
        self, fetch: Fetch, *, headers: Mapping[str, str] | None = None, wall: Callable[[], float] = time.time
    ) -> None:
        self.headers = dict(headers or {})
        self.on_trouble: Callable[[str], None] = lambda message: None
        self._fetch, self._wall = fetch, wall
        self._token: Token | None = None
        self._renew_at = -inf
        self._failure: Failure | None = None
        self._renewals = 0
        self._lock = anyio.Lock()

    async def current(self) -> Token | Failure:
        """The token to send now, or why there is none."""
        now = self._wall()
        if (token := self._good(now)) and (now < self._renew_at or self._lock.locked()):
            return token
        seen = self._renewals
        async with self._lock:
            if self._renewals == seen:
                await self._renew()
        return self._good(self._wall()) or self._failure or _ENDED

    async def instead_of(self, refused: Token) -> Token | Failure:
        """The token to send after the service refused one; it may be the same again."""
        if self._token is refused:
            self._token = None
        return await self.current()

    def _good(self, now: float) -> Token | None:
        return self._token if self._token and now < self._token.ends_at else None

    async def _renew(self) -> None:
        got = await self._fetch()
        self._renewals += 1
        now = self._wall()
        if isinstance(got, Failure):
            if (token := self._good(now)) and self._failure is None:
                left_s = token.ends_at - now
                self.on_trouble(
                    f"{got.message}; the old one is good for {left_s:,.0f} s more, and others are asked for"
                )
            self._failure, self._renew_at = got, now + AGAIN_S
        else:
            self._token, self._failure = got, None
            self._renew_at = max(got.ends_at - AHEAD_S, now + _USED * (got.ends_at - now))


_ENDED = Failure("transient", "auth", "the access token had ended when it came", sent=False)


# --- google-auth ------------------------------------------------------------------------------------------------------


async def google_tokens(wire: Wire, *, wall: Callable[[], float] = time.time) -> Tokens:
    """The tokens of the application default credentials, which are looked for here and now.

    Raises `JobError` where google-auth is not installed, `AuthError` where there are no credentials that it can use, or
    no token is given to them. A token server that does not answer may do so later.
    """
    try:
        import google.auth
        import google.auth.transport.requests  # credentials of a machine of Google's are not found without it
    except ImportError:
        raise JobError(
            "Vertex AI takes access tokens, and what gets them is not installed: google-auth and requests",
            f"`{installing('vertex')}`",
        ) from None
    logging.getLogger("google").addHandler(logging.NullHandler())  # it warns on stderr of each place without any
    request = _request_over(wire)

    def found() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a person's credentials without a project: the job names one
            return google.auth.default(scopes=[SCOPE], request=request)[0]

    def renewed() -> Token | Failure:
        try:
            credentials.refresh(request)
        except Exception as error:  # a library's, about what a stranger's server says: it ends in many ways
            return _not_renewed(error)
        ends = credentials.expiry
        return Token(credentials.token, inf if ends is None else ends.replace(tzinfo=UTC).timestamp())

    async def fetch() -> Token | Failure:
        return await anyio.to_thread.run_sync(renewed, abandon_on_cancel=True)

    try:
        credentials = await anyio.to_thread.run_sync(found, abandon_on_cancel=True)
    except Exception as error:  # as above, of any file
        raise _not_found(error) from None
    payer = credentials.quota_project_id
    tokens = Tokens(fetch, headers={"x-goog-user-project": payer} if payer else None, wall=wall)
    first = await tokens.current()
    if isinstance(first, Failure) and first.kind == "auth":
        raise AuthError(first.message, f"{cure_of(first.message)}; nothing was spent")
    return tokens


def _not_found(error: Exception) -> AuthError:
    named = os.environ.get("GOOGLE_APPLICATION_CREDENTIALS")
    login = "`gcloud auth application-default login`, or `export GOOGLE_APPLICATION_CREDENTIALS=FILE` with the key file"
    if not named:
        return AuthError(
            "no Google credentials: GOOGLE_APPLICATION_CREDENTIALS is unset, gcloud keeps none, and this is no machine"
            " of Google's that has an account",
            f"{login} of a service account; nothing was spent",
        )
    return AuthError(
        f"the Google credentials that GOOGLE_APPLICATION_CREDENTIALS names cannot be used: {_words(error)}",
        f"{login} of a service account; nothing was spent",
    )


def _not_renewed(error: Exception) -> Failure:
    """Nothing was sent to the service: a network or a token server that fails may pass, a refusal does not."""
    from google.auth.exceptions import RefreshError, TransportError

    message = f"no access token: {_words(error)}"
    if isinstance(error, TransportError) or getattr(error, "retryable", False):
        return Failure("transient", "network", message, sent=False)
    if isinstance(error, RefreshError):
        return Failure("auth", "auth", message, sent=False)
    return Failure("transient", "server", message, sent=False)


def _words(error: Exception) -> str:
    """What a person needs of an error of google-auth's, which may have the whole response behind its message."""
    said = [error.args[0]] if error.args else []
    said += [inner for inner in error.args[1:] if isinstance(inner, Exception)]
    return clean(": ".join(f"{part}" for part in said)) or type(error).__name__


def _request_over(wire: Wire) -> Any:
    """What google-auth sends requests with: over our wire, so by the same proxies; called from a thread of anyio's."""
    from google.auth.exceptions import TransportError

    def request(
        url: str,
        method: str = "GET",
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> _Answer:
        if any(options.values()):
            raise TransportError(f"{', '.join(options)}: not offered here")  # type: ignore[no-untyped-call]
        timeout_s = min(timeout or _ASK_TIMEOUT_S, _ASK_TIMEOUT_S)
        address, fields = httpx.URL(url), httpx.Headers(headers)
        if method == "GET":
            answer = anyio.from_thread.run(wire.get, address, fields, timeout_s)
        else:
            content = body.encode() if isinstance(body, str) else body or b""
            answer = anyio.from_thread.run(wire.post, address, fields, content, timeout_s)
        if isinstance(answer, Lost):
            raise TransportError(f"{address.host}: {answer.message}")  # type: ignore[no-untyped-call]
        return _Answer(answer.status, httpx.Headers(dict(answer.headers)), answer.body)

    return request


@dataclass(frozen=True, slots=True)
class _Answer:
    """A response as google-auth reads it."""

    status: int
    headers: Mapping[str, str]
    data: bytes
