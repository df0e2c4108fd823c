"""How a service is reached from here: its proxy, whom its certificate may be from, how long a connection may take."""

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from pipeline.providers.proxies import DIRECT, Proxy, proxy_named, read_proxy

CONNECT_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Network:
    """The way to a service; by default what the environment says.

    `proxy` None: the environment's; empty or "none": go direct, whatever the environment says. `named_by` is where its
    reader would change it. Certificates of `ca_bundle`, in PEM, are trusted besides the usual ones. `connect_timeout_s`
    covers all that comes before a request: the name, the connection, the proxy's part and TLS.
    """

    proxy: str | None = field(default=None, repr=False)  # it may have a login
    ca_bundle: Path | None = None
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    named_by: str = "[endpoint] proxy"

    def proxy_to(self, url: httpx.URL) -> Proxy | None:
        """Through whom requests to `url` go; None: direct. Raises `PipelineError` for one that cannot be used."""
        if self.proxy is None:
            return proxy_named(os.environ, url)
        return None if self.proxy in ("", DIRECT) else read_proxy(self.proxy, self.named_by)

    def certificates(self) -> ssl.SSLContext:
        """Whom to trust: SSL_CERT_FILE, SSL_CERT_DIR or certifi's, and `ca_bundle`. Raises `OSError` for that.

        Certificates that a company's box makes lack fields that Python asks for from 3.13 on, and curl does not.
        """
        context = httpx.create_ssl_context()
        if self.ca_bundle is not None:
            context.load_verify_locations(self.ca_bundle)
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context
