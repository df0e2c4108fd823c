"""Who may ask a served emulator: not a page in a browser, by a name that it makes point here (DNS rebinding)."""

from ipaddress import ip_address


def is_welcome(bound: str, host: str, client: str, private: bool) -> bool:
    """Whether a request with this Host header, from this address, is for us.

    `bound` is the address that was asked for. One of this machine serves this machine alone, under that name or a
    loopback one; another serves whoever reaches it, but what is `private` only this machine.
    """
    if not (is_local(bound) or private):
        return True
    name = _name(host)
    return (is_local(name) or name == bound.lower()) and (is_local(client) or client == bound)


def is_local(name: str) -> bool:
    """Whether an address or a name is this machine's own by definition."""
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")


def _name(host: str) -> str:
    """A Host header without its port: `[::1]:8089`, `localhost:8089`."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().removesuffix(".")
