"""Who may answer: a target is one model of one project at one service; a route is the targets of a prompt, in order."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from functools import lru_cache

from pipeline.prices import Rates, cost
from pipeline.records import ALWAYS, TAKEN_OVER, Lane, LaneChoice, Limits, Reply, Takes, TakesOver, Usage

_UNKNOWN = Limits()


@dataclass(frozen=True, slots=True)
class Target:
    """One model, as one project may use it at one service.

    `project` tells whose quota and whose bill it is, never by the key itself: see `project_of`. `rates` are what a call
    costs, whatever the tables say; None: what they say. `name` is that of the job file, empty where it names none.

    Among the targets of a prompt those of the lowest `priority` are asked first, others for the causes in `takes`, or
    after an answer in `takes_over`; of one priority each has a part of the requests by its `weight`, 0: whatever it has
    room for.
    """

    provider: str  # who speaks the service's protocol, as `Provider.name`
    base_url: str
    project: str
    model: str
    lane: Lane = "standard"  # in which one request is asked
    choice: LaneChoice = "standard"  # what the job says of its lanes
    rates: Rates | None = None
    limits: Limits = _UNKNOWN
    name: str = ""
    priority: int = 1
    takes: frozenset[Takes] = ALWAYS
    takes_over: frozenset[TakesOver] = frozenset()
    weight: float = 0.0
    price_factor: Decimal = Decimal(1)  # times what it costs by `rates` or the tables

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

    def usd(self, usage: Usage, model: str, at: datetime) -> Decimal | None:
        """What one call costs that was answered by `model` at that time (UTC); None: the price is unknown."""
        usd = cost(usage, model, at, self.lane, self.rates)
        return None if usd is None else usd * self.price_factor

    def asked_in(self, lane: Lane) -> "Target":
        """The same, asked in a lane: of quota and bill nothing changes but the price."""
        return self if lane == self.lane else replace(self, lane=lane)

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
    """The targets that may answer a prompt: whichever of them has room takes it, as their ranks say.

    `others` are asked after answers of such a kind; they are `second`: a run goes on without them where they are left
    out. `models` are those that may be asked, each once: under each of them an answer may have been bought.
    """

    targets: tuple[Target, ...]
    others: "tuple[tuple[TakesOver, Route], ...]" = field(default=(), compare=False)
    second: bool = False
    models: tuple[str, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "models", tuple(dict.fromkeys(target.model for target in self.targets)))

    def everyone(self) -> Iterator[Target]:
        """Whoever may be asked, at first or after an answer; some more than once."""
        yield from self.targets
        for _, route in self.others:
            yield from route.everyone()

    def mapped(self, change: Callable[[Target], Target]) -> "Route":
        """The same route with each target changed."""
        others = tuple((cause, route.mapped(change)) for cause, route in self.others)
        return Route(tuple(map(change, self.targets)), others, self.second)

    def __iter__(self) -> Iterator[Target]:
        return iter(self.targets)

    @property
    def first(self) -> Target:
        """Who is asked where nothing speaks for another."""
        return self.targets[0]

    def after(self, reply: Reply) -> "Route | None":
        """Who is asked next, where this answer will not do: nobody who has given it."""
        kind = "too_long" if reply.error_kind == "too_long" else reply.status
        for cause, route in self.others:
            if cause == kind:
                return route.after(reply) if reply.target and route.first.name == reply.target else route
        return None

    @property
    def checked(self) -> "Route | None":
        """Who is asked where a check of the job does not hold for an answer."""
        return next((route for cause, route in self.others if cause == "check"), None)

    def that_gave(self, reply: Reply) -> Target | None:
        """The target that a reply came from just now; None where none was asked."""
        return next((t for t in self.targets if (t.endpoint, t.model) == (reply.endpoint, reply.asked)), None)

    def back_to(self, reply: Reply) -> "Route":
        """Itself with nobody but who gave this reply, as far as that is known."""
        own = tuple(t for t in self.targets if (t.endpoint, t.name) == (reply.endpoint, reply.target))
        return Route(own, self.others, self.second) if own and own != self.targets else self

    def asking(self, model: str) -> "tuple[Target, ...]":
        """The targets that ask `model`; where there is none any more, the first with that model."""
        return tuple(t for t in self.targets if t.model == model) or (replace(self.first, model=model),)


def ranked(targets: Sequence[Target]) -> Route:
    """The route over all targets of a job: by their priorities, and after each answer that another takes over.

    Raises `ValueError` where nobody is asked at first.
    """
    ordered = sorted(targets, key=lambda target: target.priority)
    first = tuple(target for target in ordered if target.takes)
    if not first:
        raise ValueError("nobody is asked at first")
    return Route(first, _others(ordered, frozenset()))


def _others(ordered: Sequence[Target], asked: frozenset[str]) -> tuple[tuple[TakesOver, Route], ...]:
    """Who takes over which answers, of those that were not asked for that yet."""
    found: list[tuple[TakesOver, Route]] = []
    for cause in TAKEN_OVER:
        one = next((each for each in ordered if cause in each.takes_over and each.name not in asked), None)
        if one is not None:
            found.append((cause, Route((one,), _others(ordered, asked | {one.name}), second=True)))
    return tuple(found)


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
