"""LLMock, somebody else's mock of ten services."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

from strangers import listening


@contextmanager
def llmock(*flags: str) -> Iterator[str]:
    """Its base URL."""
    with listening("llmock", "llmock", "serve", "--port", "PORT", "--log-level", "critical", *flags) as port:
        yield f"http://127.0.0.1:{port}"


def fail(url: str, path: str, *failures: Mapping[str, Any]) -> None:
    """Have its next requests to a path fail, each `status` so many `times`; forget what was before."""
    behaviors = [{"type": "fail", "match": {"path": path}, **failure} for failure in failures]
    for what, body in (("reset", {}), ("scenario", {"behaviors": behaviors})):
        request = Request(f"{url}/_llmock/{what}", json.dumps(body).encode(), method="POST")
        build_opener(ProxyHandler({})).open(request).close()


def told(url: str, what: str) -> Any:
    """What its control interface tells: `verdict`, `requests`."""
    with build_opener(ProxyHandler({})).open(Request(f"{url}/_llmock/{what}")) as response:
        return json.load(response)
