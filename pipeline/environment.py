"""Places and certificates that the environment names, checked with the variable's name for the person who set it."""

import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import PipelineError

VARIABLES: Mapping[str, str] = {
    "GEMINI_API_KEY": "the key, unless `[endpoint]` names another variable or place; `.env` files are looked into too",
    "GOOGLE_API_KEY": "the key, where `GEMINI_API_KEY` is not set",
    "GOOGLE_GEMINI_BASE_URL": "the service's address; wins over `[endpoint] base_url`",
    "OPENAI_API_KEY": 'the key of a job with `provider = "openai"`, unless `[endpoint] key_env` names another',
    "OPENAI_BASE_URL": "that job's address; wins over `[endpoint] base_url`",
    "GOOGLE_APPLICATION_CREDENTIALS": "the file of credentials for Vertex AI, as google-auth reads it",
    "GOOGLE_CLOUD_PROJECT": 'the project of a job with `provider = "vertex"` that names none',
    "GOOGLE_CLOUD_LOCATION": "that job's location, where it names none",
    "GOOGLE_VERTEX_BASE_URL": "that job's address; wins over `[endpoint] base_url`",
    "HTTPS_PROXY": "the proxy for https:// addresses, and `HTTP_PROXY` for http://; `https_proxy` wins over it."
    " `[endpoint] proxy` wins over all of these",
    "ALL_PROXY": "the proxy for addresses that none of those is for",
    "NO_PROXY": "who is reached without: `*`, domains, addresses, networks as `10.0.0.0/8`; with a port or without",
    "SSL_CERT_FILE": "certificates to trust in place of the usual ones, in PEM",
    "SSL_CERT_DIR": "a directory of certificates to trust in place of the usual ones, named by `openssl rehash`",
    "XDG_STATE_HOME": "where learned limits, day counts and the book of spending are kept. Default: `~/.local/state`",
    "XDG_CACHE_HOME": "where the cache of answers is. Default: `~/.cache`",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "the collector that gets spans of live requests, with the extra `otel`; the other"
    " `OTEL_…` variables hold as well",
    "RAY_ADDRESS": "the cluster of `--on ray`, as `HOST:6379`; without it a Ray of its own is started on this machine",
    "PIPELINE_LANG": "the language of the terminal's messages, `en` or `zh`; wins over the locale. English, where"
    " neither asks for Chinese",
    "POLARS_MAX_THREADS": "threads that read and write tables. Default: as many as there are cores",
}
"""What the environment decides, for a person."""
MOST_THREADS = 1024
"""Of polars; a thread takes 2 MB of addresses, and a hundred million were still being started after ten minutes."""


def state_home() -> Path:
    """The user's directory of state. Raises `PipelineError`."""
    return _place("XDG_STATE_HOME", ".local/state")


def cache_home() -> Path:
    """The user's directory of caches. Raises `PipelineError`."""
    return _place("XDG_CACHE_HOME", ".cache")


def home() -> Path:
    """The user's home directory. Raises `PipelineError` where HOME is unset and the system knows none."""
    try:
        found = Path.home()
    except RuntimeError:
        raise PipelineError(
            "HOME is unset, and the system knows no home directory of this user",
            "set HOME, or XDG_STATE_HOME and XDG_CACHE_HOME, to a directory that can be written",
        ) from None
    return _absolute("HOME", found)


def check_directory() -> None:
    """Raise `PipelineError` where the directory that one is in is gone: nothing could be written."""
    try:
        Path.cwd()
    except OSError:
        raise PipelineError("the directory you are in is gone", "`cd` to one that is there") from None


def check_threads() -> None:
    """Raise `PipelineError` for a number of threads with which polars panics, or never ends."""
    named = os.environ.get("POLARS_MAX_THREADS")
    if named and not (named.isascii() and named.isdecimal() and 1 <= int(named) <= MOST_THREADS):
        raise PipelineError(
            f"POLARS_MAX_THREADS is {named}, which is no number from 1 to {MOST_THREADS}",
            "unset it: as many threads are used as there are cores",
        )


def check_certificates() -> None:
    """Raise `PipelineError` for certificates that are named and cannot be used: no connection would be trusted."""
    if file := os.environ.get("SSL_CERT_FILE"):
        check_bundle("SSL_CERT_FILE", file)
    directory = os.environ.get("SSL_CERT_DIR")
    if directory and not file:
        found = [each for each in map(Path, directory.split(os.pathsep)) if each.is_dir()]
        if not found:
            raise PipelineError(f"SSL_CERT_DIR: {directory} is no directory", _CERTIFICATES)
        if not any(_HASHED.fullmatch(each.name) for place in found for each in place.iterdir()):
            raise PipelineError(
                f"SSL_CERT_DIR: {directory} has no certificate under the name by which it is looked for",
                f"`openssl rehash {found[0]}` gives those in it such names; or name one file with SSL_CERT_FILE",
            )


def check_bundle(named: str, file: str) -> None:
    """Raise `PipelineError` for a file of certificates, called `named`, that cannot be used."""
    try:
        ssl.create_default_context(cafile=file)
    except (OSError, ValueError) as error:  # ssl.SSLError, for what is no PEM, is an OSError
        if not isinstance(error, ssl.SSLError):
            why = (isinstance(error, OSError) and error.strerror) or str(error)
            raise PipelineError(f"{named}: {file} cannot be read: {why}", _CERTIFICATES) from None
        hint = f"`openssl x509 -inform der -in {file} -out {file}.pem` makes one" if _is_der(file) else _CERTIFICATES
        raise PipelineError(f"{named}: {file} holds no certificate in PEM", hint) from None


def _is_der(file: str) -> bool:
    with Path(file).open("rb") as opened:
        return opened.read(2) == b"\x30\x82"


_HASHED = re.compile(r"[0-9a-f]{8}\.\d+")
_CERTIFICATES = "name one that is there, or leave it out: a usual set of certificates comes along"


def _place(variable: str, usual: str) -> Path:
    if named := os.environ.get(variable):
        return _writable(variable, _absolute(variable, Path(named)))
    return _writable("HOME", home() / usual)


def _absolute(variable: str, path: Path) -> Path:
    if not path.is_absolute():
        raise PipelineError(f"{variable} is {path}, which is no absolute path", f"`export {variable}=/…`")
    return path


def _writable(variable: str, path: Path) -> Path:
    there = next(each for each in (path, *path.parents) if each.exists() or each.is_symlink())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return path
    what = "cannot be written" if there.is_dir() else "is no directory"
    raise PipelineError(
        f"{variable} leads to {path}, but {there} {what}", f"set {variable} to a place that can be written"
    )
