"""The ways from here to the services of a run: made from what the job says, and tried before the first request."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import anyio
import httpx

from pipeline.environment import check_bundle
from pipeline.errors import AuthError, JobError, ServiceError
from pipeline.job import Job
from pipeline.keys import origin_of, read
from pipeline.providers.networks import Network
from pipeline.providers.transport import Lost, Wire
from pipeline.targets import Target

TRIES, BETWEEN_S = 3, 1.0
"""Connections that are tried before a run, where one fails at once: a line may come back."""


def network_of(job: Job) -> Network:
    """How a job says that its service is reached. Raises `PipelineError` for what is named and is not there.

    A variable with a proxy is looked for where one with a key is.
    """
    endpoint = job.spec.endpoint
    proxy, named_by = endpoint.proxy, "[endpoint] proxy"
    if (name := endpoint.proxy_env) is not None:
        try:
            found = read(origin_of(None, (name,), job.path.parent))
        except JobError:
            hint = f"`export {name}=http://USER:PASSWORD@HOST:PORT`, or a line of a `.env` file beside the job"
            raise JobError(f"[endpoint] proxy_env: {name} is unset", hint) from None
        proxy, named_by = found.value, found.where
    bundle = endpoint.ca_bundle
    if bundle is not None:
        check_bundle("[endpoint] ca_bundle", bundle)
    return Network(proxy, Path(bundle) if bundle else None, endpoint.connect_timeout_s, named_by)


async def check_ways(targets: Iterable[Target], wires: Mapping[str, Wire]) -> None:
    """Connect to the targets over their `wires`, by `Target.access`; raises `PipelineError` where none is reached.

    The first connection that comes about is enough, and the first request goes over it.
    """
    barred: Lost | None = None
    for target in targets:
        if target.access not in wires:
            return
        lost = await _tried(wires[target.access], httpx.URL(target.base_url.strip()))
        if lost is None:
            return
        barred = barred or lost
    if barred is not None:
        error = AuthError if barred.kind == "proxy" else ServiceError
        raise error(f"no request reaches the service, and none was sent: {barred.message}", barred.advice)


async def _tried(wire: Wire, url: httpx.URL) -> Lost | None:
    lost = await wire.reach(url)
    for _ in range(TRIES - 1):
        if lost is None or lost.kind != "not_connected":
            break
        await anyio.sleep(BETWEEN_S)
        lost = await wire.reach(url)
    return lost
