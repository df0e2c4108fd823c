"""Stores of secrets that are asked for a key: the user's keyring, Google Secret Manager."""

import base64
import shlex
from functools import lru_cache
from urllib.parse import quote

from pipeline.errors import JobError
from pipeline.installed import installing
from pipeline.terminal import KEY_SHAPED

SECRET_MANAGER = "https://secretmanager.googleapis.com"
_ASK_TIMEOUT_S = 20.0


@lru_cache(maxsize=16)
def from_keyring(name: str) -> str:
    """What the user's keyring holds under SERVICE/NAME; asked once. Raises `JobError`."""
    try:
        import keyring
        from keyring.errors import KeyringError
    except ImportError:
        raise _not_installed(f"keyring:{name}", "keyring") from None
    service, _, user = name.partition("/")
    try:
        found = keyring.get_password(service, user)
    except KeyringError as error:
        raise JobError(
            f"no API key: the keyring cannot be asked for {name}: {_first_line(error)}",
            "unlock it, or name another place: [endpoint] key or key_env",
        ) from None
    if found is None:
        raise JobError(
            f"no API key: the keyring holds nothing for {name}",
            f"`keyring set {shlex.quote(service)} {shlex.quote(user)}` puts it there",
        )
    return found


@lru_cache(maxsize=16)
def from_secret_manager(name: str) -> str:
    """What a secret of Google's Secret Manager holds; asked once. Raises `JobError`.

    Over its REST interface, with an access token as google-auth finds one; the latest version where none is named.
    """
    try:
        import google.auth
        from google.auth.exceptions import GoogleAuthError
        from google.auth.transport.requests import AuthorizedSession
        from requests.exceptions import RequestException
    except ImportError:
        raise _not_installed(f"gcp-secret:{name}", "gcp") from None
    version = name if "/versions/" in name else f"{name}/versions/latest"
    url = f"{SECRET_MANAGER}/v1/{quote(version)}:access"
    try:
        credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
        with AuthorizedSession(credentials) as session:  # type: ignore[no-untyped-call]
            answer = session.get(url, timeout=_ASK_TIMEOUT_S, allow_redirects=False)
    except GoogleAuthError as error:
        raise JobError(
            f"no API key: Google gives no access to Secret Manager: {_first_line(error)}",
            "`gcloud auth application-default login`, or GOOGLE_APPLICATION_CREDENTIALS with the file of an account",
        ) from None
    except RequestException as error:
        raise JobError(
            f"no API key: Secret Manager does not answer: {type(error).__name__}", "look at the network"
        ) from None
    try:
        return base64.b64decode(answer.json()["payload"]["data"], validate=True).decode()
    except (KeyError, TypeError, ValueError):
        raise JobError(*_no_secret(version, answer.status_code)) from None


def _no_secret(version: str, status: int) -> tuple[str, str]:
    """Why Secret Manager gave no text. Its own words may repeat what was asked, and say no more."""
    if status in (401, 403):
        hint = "the account needs the role roles/secretmanager.secretAccessor on the secret"
        return f"no API key: Secret Manager refuses {version} to this account (HTTP {status})", hint
    if status == 404:
        return f"no API key: Secret Manager has no {version}", "look at the project, the secret and its version"
    if status == 200:
        return f"no API key: what {version} holds is no text", "put the key there as text"
    return f"no API key: Secret Manager answers HTTP {status} for {version}", "look at the version: it may be disabled"


def _not_installed(what: str, extra: str) -> JobError:
    return JobError(
        f"[endpoint] key names {what}, and what reads it is not installed",
        f"`{installing(extra)}`",
    )


def _first_line(error: Exception) -> str:
    return KEY_SHAPED.sub("***", (str(error).strip() or type(error).__name__).splitlines()[0])[:200]
