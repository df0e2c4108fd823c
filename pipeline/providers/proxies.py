"""Which proxy a request takes: what curl would read in the environment, or what a job names. Pure.

Where curl goes around a proxy by NO_PROXY, so does this. It also goes around by what others write there: entries parted
by spaces alone, `*` among others, `*.name`, `host:port` and `[::1]`. The other difference to curl: HTTP_PROXY in upper
case is heeded, unless a web server asks (REQUEST_METHOD is set), who lets its visitors set that variable.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import httpx

from pipeline.errors import PipelineError
from pipeline.providers.hosts import is_host

DIRECT = "none"
"""Said in place of a proxy: go without."""
_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
_MOST_LOGIN_BYTES = 255
"""Of a name or a password, by RFC 1929."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that can be used, and who named it. As text it has no login."""

    url: httpx.URL
    named_by: str  # HTTPS_PROXY, [endpoint] proxy

    def __str__(self) -> str:
        return f"{self.url.scheme}://{self.url.netloc.decode()}"

    @property
    def host(self) -> str:
        """Its name or address, without brackets."""
        return self.url.host

    @property
    def port(self) -> int:
        """Its port; 80, 443 or 1080 where none is named."""
        return self.url.port or _PORTS[self.url.scheme]

    @property
    def is_socks(self) -> bool:
        """Whether it speaks SOCKS5 rather than HTTP."""
        return self.url.scheme.startswith("socks")

    @property
    def looks_up(self) -> bool:
        """Whether it is given names, and not addresses that were looked up here."""
        return self.url.scheme != "socks5"


def proxy_named(environ: Mapping[str, str], url: httpx.URL) -> Proxy | None:
    """The proxy for `url` as the environment says; None: none. Raises `PipelineError` for one that cannot be used."""
    names = ["https_proxy", "HTTPS_PROXY"] if url.scheme == "https" else ["http_proxy"]
    if url.scheme == "http" and "REQUEST_METHOD" not in environ:
        names.append("HTTP_PROXY")
    name = next((name for name in (*names, "all_proxy", "ALL_PROXY") if environ.get(name, "").strip()), None)
    around = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    if name is None or goes_around(around, url.host, url.port or _PORTS[url.scheme]):
        return None
    return read_proxy(environ[name], name)


def read_proxy(text: str, named_by: str) -> Proxy:
    """Read a proxy's address, `http://` where it names no scheme. Raises `PipelineError`, without a login."""
    text = text.strip()
    try:
        url = httpx.URL(text if "://" in text else f"http://{text}")
    except (httpx.InvalidURL, UnicodeError):  # the latter of a host that cannot be written in ASCII
        url = httpx.URL("")
    if url.scheme == "socks":  # desktops write it so, and take SOCKS5 first; SOCKS4, as curl would, knows no names
        url = url.copy_with(scheme="socks5h")
    if (
        url.scheme not in _PORTS
        or not is_host(url.raw_host.decode())
        or not (url.port is None or 0 < url.port < 65_536)
    ):
        what = f"{named_by} names a proxy without a good host or port"
        if url.scheme not in _PORTS:
            what = f"{named_by} names a proxy of {url.scheme}://, which is not spoken"
        raise PipelineError(
            what if url.scheme else f"{named_by} names no address of a proxy",
            "write it as http://, https://, socks5:// or socks5h://, then HOST:PORT or USER:PASSWORD@HOST:PORT with %40"
            ' for an @ in the password; NO_PROXY=HOST, or [endpoint] proxy = "none", goes without',
        )
    if url.scheme.startswith("socks") and url.userinfo and not all(map(_fits_socks, (url.username, url.password))):
        raise PipelineError(
            f"{named_by} names a login that SOCKS cannot carry",
            f"it needs both a name and a password, of ASCII and of at most {_MOST_LOGIN_BYTES} characters each",
        )
    return Proxy(url, named_by)


def _fits_socks(word: str) -> bool:
    return word.isascii() and 0 < len(word) <= _MOST_LOGIN_BYTES


def goes_around(no_proxy: str, host: str, port: int) -> bool:
    """Whether an entry of NO_PROXY covers a host: `*`, a domain and all below it, an address, a network as 10.0.0.0/8.

    An entry with a port covers that port only. `host` is a name, or an address without brackets.
    """
    host = host.lower().rstrip(".")
    address = _address(host)
    return any(_covers(entry, host, address, port) for entry in re.split(r"[\s,]+", no_proxy.lower()) if entry)


def _covers(entry: str, host: str, address: IPv4Address | IPv6Address | None, port: int) -> bool:
    parts = re.fullmatch(r"\[(?P<v6>.+)\](?::(?P<p6>\d+))?|(?P<host>[^:]+)(?::(?P<p>\d+))?|.+", entry)
    assert parts is not None
    name = parts["v6"] or parts["host"] or entry
    wanted = parts["p6"] or parts["p"]
    if wanted and int(wanted) != port:
        return False
    if name == "*":
        return True
    if address is not None:
        network = _network(name)
        return network is not None and address in network
    name = name.removeprefix("*").removesuffix(".").removeprefix(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _network(name: str) -> IPv4Network | IPv6Network | None:
    try:
        return ip_network(name, strict=False)
    except ValueError:
        return None
