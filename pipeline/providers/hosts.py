"""Which names a host may have."""

import re
from ipaddress import ip_address

_LABEL = re.compile(r"(?!-)[A-Za-z0-9_\-]{1,63}(?<!-)", re.ASCII)


def is_host(host: str) -> bool:
    """Whether a name may be that of a host: what can never be found is no outage."""
    if ":" in host or host.replace(".", "").isdecimal():
        try:
            return bool(ip_address(host))
        except ValueError:
            return False
    labels = host.removesuffix(".").split(".")
    return len(host) <= 253 and all(_LABEL.fullmatch(label) for label in labels)
