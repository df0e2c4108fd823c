"""Who may answer: a target is one model of one project at one service; a route is the targets of a prompt, in order."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal, get_args

from pipeline.prices import Lane, Rates
from pipeline.records import Limits, Reply

_UNKNOWN = Limits()

Takes = Literal["full", "day_quota", "outage"]
"""Why a target takes what others before it are asked first: they have no room now, none today, or are down."""
ALWAYS: frozenset[Takes] = frozenset(get_args(Takes))


@dataclass(frozen=True, slots=True)
class Target:
    """One model, as one project may use it at one service.

    `project` tells whose quota and whose bill it is, never by the key itself: see `project_of`. `rates` are what a call
    costs, whatever the tables say; None: what they say. `name` is that of the job file, empty where it names none.

    Among the targets of a prompt those of the lowest `priority` are asked first, and others for the causes in `takes`;
    of one priority each has a part of the requests by its `weight`, 0: whatever it has room for.
    """

    provider: str  # who speaks the service's protocol, as `Provider.name`
    base_url: str
    project: str
    model: str
    lane: Lane = "standard"
    rates: Rates | None = None
    limits: Limits = _UNKNOWN
    name: str = ""
    priority: int = 1
    takes: frozenset[Takes] = ALWAYS
    weight: float = 0.0

    @property
    def access(self) -> str:
        """Which key speaks for it: `account`, with the target's name where it has one."""
        return f"{self.account}#{self.name}" if self.name else self.account

    @property
    def label(self) -> str:
        """What a person knows it by: its name, or where it is."""
        return self.name or self.endpoint

    @property
    def endpoint(self) -> str:
        """Provider and host: `gemini@generativelanguage.googleapis.com`. Every reply is kept with it."""
        return f"{self.provider}@{_host_of(self.base_url)}"

    @property
    def account(self) -> str:
        """Whose money it spends: `endpoint/project`."""
        return f"{self.endpoint}/{self.project}"

    @property
    def quota(self) -> str:
        """What its limits are counted by: `endpoint/project/model`. Targets that share it share one loop."""
        return f"{self.account}/{self.model}"


@dataclass(frozen=True, slots=True)
class Route:
    """The targets that may answer a prompt: whichever of them has room takes it.

    `models` are those that may be asked, each once: under each of them an answer may have been bought.
    """

    targets: tuple[Target, ...]
    models: tuple[str, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "models", tuple(dict.fromkeys(target.model for target in self.targets)))

    def __iter__(self) -> Iterator[Target]:
        return iter(self.targets)

    @property
    def first(self) -> Target:
        """Who is asked where nothing speaks for another."""
        return self.targets[0]

    def that_gave(self, reply: Reply) -> Target | None:
        """The target that a reply came from just now; None where none was asked."""
        return next((t for t in self.targets if (t.endpoint, t.model) == (reply.endpoint, reply.asked)), None)

    def asking(self, model: str) -> Target:
        """The first target that asks `model`; where there is none any more, the first with that model."""
        return next((t for t in self.targets if t.model == model), replace(self.first, model=model))


def by_quota(targets: Iterable[Target]) -> dict[str, list[Target]]:
    """The targets of each quota: several are several keys."""
    found: dict[str, list[Target]] = {}
    for target in targets:
        found.setdefault(target.quota, []).append(target)
    return found


@lru_cache(maxsize=64)
def _host_of(base_url: str) -> str:
    """Host of an address, with its port where that is not the usual one; every call asks for it.

    httpx writes it, as it is sent: limits and spending of earlier runs stand under that name. Raises `ValueError`.
    """
    from httpx import URL, InvalidURL  # the heaviest import, and what reads stored runs does without

    try:
        return URL(base_url.strip()).copy_with(path="/").netloc.decode()  # drops the usual port of HTTPS:// as well
    except InvalidURL as error:
        raise ValueError(f"no address: {error}") from error


def project_of(key: str) -> str:
    """A name for the project behind a key, which does not tell the key."""
    return hashlib.blake2b(key.encode(), digest_size=8).hexdigest()


def provider_of(endpoint: str) -> str:
    """The provider that a kept reply's endpoint names."""
    return endpoint.partition("@")[0]
