"""What keeps a request from reaching its service, in the words of a person, and what to set. Pure.

What is seen from here is told from what it looks like: a refused connection is no dead host, and one that is cut as
TLS begins is the way in which a firewall blocks a host by its name.
"""

import errno
import os
import socket
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import aiohttp
import httpx

from pipeline.providers.proxies import Proxy

Step = Literal["name", "connect", "tunnel", "tls"]
"""Of making a connection: look up a name, connect, have the proxy pass it on, agree on TLS."""

_GOOGLE = (".googleapis.com", ".google.com", ".google.dev")
_REFUSING = (401, 403, 405, 407)
"""Of a proxy that opens no tunnel for the login or the host: these do not pass."""
_LOGINS_OF_WINDOWS = ("ntlm", "negotiate", "kerberos")
_SOCKS_REFUSING = 2
"""SOCKS5's reply for what its rules forbid; 1 and 3 to 6 tell of the network behind it."""
_NO_WAY = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL)
_NOT_TRUSTED = (2, 18, 19, 20, 21, 27)
"""OpenSSL's codes for a certificate whose issuer is not known here."""
_OUT_OF_TIME = (9, 10)
_OTHER_NAME = (62, 64)


class Unconnected(Exception):
    """No connection came about: a request was provably not sent. Its cause says why."""

    def __init__(self, step: Step, given_s: float) -> None:
        super().__init__(step)
        self.step = step
        self.given_s = given_s


class SocksRefused(Exception):
    """A SOCKS proxy does not do what it is asked for; `code` is its reply, None where it gave none."""

    def __init__(self, said: str, code: int | None) -> None:
        super().__init__(said)
        self.code = code


class Barrier(NamedTuple):
    """Why no request gets through. `proxy`: somebody refuses, and will do so again."""

    kind: Literal["not_connected", "timeout", "proxy"]
    message: str
    advice: str  # what to set or to look at


def barrier(unconnected: Unconnected, url: httpx.URL, proxy: Proxy | None) -> Barrier:
    """What an attempt at a connection to `url` ended with."""
    error = unconnected.__cause__
    if isinstance(error, TimeoutError):
        return _slow(unconnected.step, url, proxy, unconnected.given_s)
    if isinstance(error, SocksRefused) and proxy:
        return _socks(error, url, proxy)
    if isinstance(error, aiohttp.ClientHttpProxyError) and proxy:
        return _no_tunnel(error.status, error.headers or {}, url, proxy)
    at_proxy = proxy is not None and (
        unconnected.step == "connect" or (unconnected.step == "name" and getattr(error, "host", "") != url.host)
    )
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _certificate(cause, f"proxy {proxy}" if at_proxy else url.host, url)
    if isinstance(cause, socket.gaierror):
        return _no_name(cause, url, proxy if at_proxy else None, proxy)
    if at_proxy and proxy:
        return _proxy_away(cause, url, proxy)
    if unconnected.step == "tunnel" and proxy:
        what = f"the proxy {proxy} ends the connection when it is asked for {url.host}"
        how = f"if it speaks SOCKS, write socks5h:// in {proxy.named_by}; else look at its log"
        return Barrier("not_connected", what, how)
    return _host_away(cause, unconnected.step, url, proxy)


def _slow(step: Step, url: httpx.URL, proxy: Proxy | None, timeout_s: float) -> Barrier:
    within = f"within {timeout_s:g} s"
    if step == "name":
        return Barrier("timeout", f"no name server answers {within}", _other_way(url, proxy))
    if step == "connect" and proxy:
        advice = _plain(proxy) if proxy.url.scheme == "https" else _look_at(proxy, url)
        return Barrier("timeout", f"the proxy {proxy} does not answer {within}", advice)
    if step == "tunnel" and proxy:
        other = f"; if it is an HTTP proxy, write http:// in {proxy.named_by}" if proxy.is_socks else ""
        return Barrier("timeout", f"the proxy {proxy} opens no way to {url.host} {within}", _behind(proxy) + other)
    if step == "tls":
        what = f"{url.host} is reached, but TLS does not come about {within}, as where a firewall swallows it"
        return Barrier("timeout", what, _other_way(url, proxy))
    what = f"{_place(url)} does not answer {within}, as where a firewall drops what goes there"
    return Barrier("timeout", what, _other_way(url, proxy))


def _socks(error: SocksRefused, url: httpx.URL, proxy: Proxy) -> Barrier:
    said = str(error)
    if "authentication" in said.lower():
        what = f"the proxy {proxy} asks for a login, or refuses the one it is given"
        return Barrier("proxy", what, _login(proxy))
    if error.code == _SOCKS_REFUSING:
        return Barrier("proxy", f"the proxy {proxy} may not pass anything on to {url.host}", _behind(proxy))
    if error.code is not None:
        return Barrier("not_connected", f"the proxy {proxy} does not reach {url.host}: {said.lower()}", _behind(proxy))
    return Barrier(
        "not_connected",
        f"what listens at {proxy} does not answer as SOCKS5 does",
        f"if it is an HTTP proxy, write http:// in {proxy.named_by}",
    )


def _no_tunnel(status: int, headers: Mapping[str, str], url: httpx.URL, proxy: Proxy) -> Barrier:
    if status in _REFUSING:
        return passes_nothing_on(proxy, status, headers)
    return Barrier("not_connected", f"the proxy {proxy} opens no way to {url.host} (HTTP {status})", _behind(proxy))


def passes_nothing_on(proxy: Proxy, status: int, headers: Mapping[str, str]) -> Barrier:
    """A proxy refuses the login or the host by an HTTP status; `headers` look names up in any case."""
    scheme = (headers.get("Proxy-Authenticate", "").split() or [""])[0]
    if status == 407 and scheme.lower() in _LOGINS_OF_WINDOWS:
        what = f"the proxy {proxy} asks for a login by {scheme}, which is not spoken here (HTTP 407)"
        how = f"start a proxy on this machine that logs in there, as px or cntlm do, and name it in {proxy.named_by}"
        return Barrier("proxy", what, how)
    is_login = status in (401, 407)  # tinyproxy says 401 of a wrong one
    why = "asks for a login, or refuses the one it is given" if is_login else "passes no request on"
    advice = _login(proxy) if is_login else _behind(proxy)
    return Barrier("proxy", f"the proxy {proxy} {why} (HTTP {status})", advice)


def _certificate(error: ssl.SSLCertVerificationError, who: str, url: httpx.URL) -> Barrier:
    if error.verify_code in _OUT_OF_TIME:
        today = datetime.now(UTC).date()
        what = f"the certificate of {who} is of another time ({error.verify_message})"
        return Barrier("not_connected", what, f"look at this machine's clock, by which it is {today}; or tell them")
    if error.verify_code in _OTHER_NAME:
        what = f"{who} shows the certificate of somebody else, as a captive portal does, or a name server that lies"
        return Barrier("not_connected", what, _other_way(url, None))
    trusted = "set [endpoint] ca_bundle or SSL_CERT_FILE to that box's root certificate, in PEM"
    if error.verify_code in _NOT_TRUSTED:
        what = f"the certificate of {who} is from nobody who is trusted here, as where a company's box reads along"
        return Barrier("not_connected", f"{what} ({error.verify_message})", trusted)
    return Barrier("not_connected", f"the certificate of {who} is not good ({error.verify_message})", trusted)


def _no_name(error: socket.gaierror, url: httpx.URL, asked: Proxy | None, proxy: Proxy | None) -> Barrier:
    if asked:
        what = f"the name of the proxy {asked} is not known ({error.strerror})"
        return Barrier("not_connected", what, f"mend it in {asked.named_by}")
    what = f"the name {url.host} is not known here ({error.strerror})"
    if proxy:
        return Barrier("not_connected", what, f"write socks5h:// in {proxy.named_by}: the proxy then looks it up")
    return Barrier("not_connected", what, _other_way(url, None))


def _proxy_away(error: object, url: httpx.URL, proxy: Proxy) -> Barrier:
    if isinstance(error, ssl.SSLError | ConnectionResetError):
        return Barrier("not_connected", f"the proxy {proxy} does not speak TLS itself", _plain(proxy))
    return Barrier("not_connected", f"the proxy {proxy} cannot be reached: {_reason(error)}", _look_at(proxy, url))


def _host_away(error: object, step: Step, url: httpx.URL, proxy: Proxy | None) -> Barrier:
    number = getattr(error, "errno", None)
    if isinstance(error, ConnectionResetError | ssl.SSLEOFError) and url.scheme == "https":
        behind = f", behind the proxy {proxy}" if proxy else ""
        what = f"the connection to {url.host} is cut as TLS begins, as a firewall does that blocks the host{behind}"
        return Barrier("not_connected", what, _other_way(url, proxy))
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "reason", None)
        if reason in ("WRONG_VERSION_NUMBER", "UNEXPECTED_MESSAGE", "RECORD_LAYER_FAILURE"):
            return Barrier(
                "not_connected", f"{_place(url)} speaks no TLS", "look at [endpoint] base_url: is it http://?"
            )
        what = f"no TLS comes about with {_place(url)} ({reason or type(error).__name__})"
        return Barrier("not_connected", what, _other_way(url, proxy))
    if isinstance(error, ConnectionRefusedError):
        what = f"{_place(url)} refuses the connection: nothing listens there, or a firewall says so"
        return Barrier("not_connected", what, _other_way(url, proxy))
    if number in _NO_WAY:
        what = f"there is no way from here to {_place(url)}: {_reason(error)}"
        return Barrier("not_connected", what, f"is this machine on the network? {_other_way(url, proxy)}")
    return Barrier("not_connected", f"no connection to {_place(url)}: {_reason(error)}", _other_way(url, proxy))


def _reason(error: object) -> str:
    number = getattr(error, "errno", None)
    if isinstance(number, int) and number > 0:
        return os.strerror(number).lower()
    return " ".join(f"{error}".split())[:100] or type(error).__name__


def _place(url: httpx.URL) -> str:
    return url.netloc.decode()


def _other_way(url: httpx.URL, proxy: Proxy | None) -> str:
    if proxy:
        return _behind(proxy)
    if url.host.endswith(_GOOGLE):
        return (
            "where Google is not reached directly: set HTTPS_PROXY or [endpoint] proxy to a proxy"
            " (http:// or socks5h://HOST:PORT), or [endpoint] base_url to a relay"
        )
    return "look at [endpoint] base_url; where a proxy leads there, set HTTPS_PROXY or [endpoint] proxy"


def _plain(proxy: Proxy) -> str:
    return f"write http:// in {proxy.named_by}: that is how most are spoken to, for targets with https:// too"


def _look_at(proxy: Proxy, url: httpx.URL) -> str:
    direct = '[endpoint] proxy = "none"'
    if proxy.named_by.startswith("["):  # which NO_PROXY does not undo
        return f"is it running? Mend {proxy.named_by}, or go without: {direct} in its place"
    return f"is it running? Mend {proxy.named_by}, or go without: NO_PROXY={url.host} or {direct}"


def _behind(proxy: Proxy) -> str:
    return f"look at the proxy's log and exit, or name another in {proxy.named_by}"


def _login(proxy: Proxy) -> str:
    where = "the variable that [endpoint] proxy_env names" if proxy.named_by.startswith("[") else proxy.named_by
    return f"put the login into {where}, as {proxy.url.scheme}://USER:PASSWORD@HOST:PORT"
