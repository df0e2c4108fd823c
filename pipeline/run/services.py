"""Who answers a session: its targets, and the providers that speak to them."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TYPE_CHECKING

import anyio
import httpx

from pipeline.environment import check_certificates
from pipeline.errors import JobError
from pipeline.job import Job, key_of
from pipeline.places import Kind
from pipeline.prompts import Prompt
from pipeline.providers.base import Account, Provider, Providers
from pipeline.providers.connection import Connected, Connection, checked_url
from pipeline.providers.fetching import Fetcher
from pipeline.providers.gemini import Gemini
from pipeline.providers.google_auth import Tokens, google_tokens
from pipeline.providers.networks import Network
from pipeline.providers.openai import OpenAI
from pipeline.providers.stored import parser_of
from pipeline.providers.transport import Wire
from pipeline.providers.uploads import UploadBook
from pipeline.providers.vertex import Vertex
from pipeline.records import Failure, Parse, Reply
from pipeline.run.prepare import Session, inline_bytes
from pipeline.run.renewal import Renewal, known_project
from pipeline.run.ways import check_ways, network_of
from pipeline.source import output_conflict
from pipeline.targets import Route, Target, ranked

if TYPE_CHECKING:
    from pipeline.emulator import Emulator

_EMULATOR_URL = "http://emulator"
SPEAKERS: Mapping[str, type[Connected]] = {"gemini": Gemini, "openai": OpenAI, "vertex": Vertex}
"""Who speaks each protocol that a job may name."""


@dataclass(frozen=True, slots=True)
class Services:
    """The targets of a session, open, and who speaks to each."""

    route: Route
    providers: Providers
    notes: tuple[str, ...] = ()  # on the keys, before the first call
    renewals: tuple[Renewal, ...] = ()  # what they have to say comes in the middle of the run
    tokens: Tokens | None = None  # as they have
    wires: Mapping[str, Wire] = field(default_factory=dict)  # by `Target.access`
    others: tuple[Route, ...] = ()  # of the rules before the last, whose `route` is
    book: UploadBook = field(default_factory=UploadBook)  # of the files that are uploaded
    connections: tuple[Connection, ...] = ()
    fetcher: Fetcher | None = None

    @property
    def routes(self) -> tuple[Route, ...]:
        """By the number of the rule that a row falls under."""
        return *self.others, self.route

    @property
    def targets(self) -> tuple[Target, ...]:
        """Whoever may be asked, each once."""
        return tuple(dict.fromkeys(target for route in self.routes for target in route.everyone()))

    @property
    def parse(self) -> Parse:
        """Reads stored replies of any of them."""
        return parser_of(self.providers)

    def speaker(self, target: Target) -> Provider:
        """Who speaks the target's protocol."""
        return self.providers[target.provider]

    async def generate(self, prompt: Prompt, target: Target) -> Reply | Failure:
        """Make one request to a target."""
        return await self.providers[target.provider].generate(prompt, target)

    async def ready(self, prompt: Prompt, target: Target) -> Prompt | Failure:
        """The prompt with its files fetched, and uploaded, as far as they have to be."""
        filled = await self.fetcher.filled(prompt) if self.fetcher else prompt
        speaker = self.providers[target.provider]
        if isinstance(filled, Failure) or not isinstance(speaker, Connected):
            return filled
        return await speaker.open(target).linked(filled)

    async def count_tokens(self, prompt: Prompt) -> int | Failure:
        """Input tokens as the first target's model counts them, free of charge."""
        return await self.speaker(self.route.first).count_tokens(prompt, self.route.first)

    async def delete_files(self) -> None:
        """Delete what was uploaded."""
        for connection in self.connections:
            await connection.delete_files()

    async def reach(self) -> None:
        """Connect before anything is sent; see `check_ways`."""
        await check_ways(self.targets, self.wires)


Opening = Callable[[Session], AbstractAsyncContextManager[Services]]


def target_of(session: Session) -> Target:
    """The target that the job names, or the embedded emulator. Raises `JobError` without a key or project."""
    offline = session.options.offline
    target = asked_at(session.job, offline, "offline" if offline else project_at(session.job))
    return replace(
        target,
        model=session.working.model,
        choice=session.working.choice,
        rates=session.rates,
        limits=session.limits,
    )


def asked_at(job: Job, offline: bool, project: str) -> Target:
    """Where the job's calls go, without prices and limits: to be asked what is free of charge.

    Raises `JobError` for an address that cannot be one: a target's name would show it.
    """
    if offline:
        return Target(job.spec.endpoint.provider, _EMULATOR_URL, project, job.model)
    checked_url(job.base_url, job.spec.endpoint.provider)
    return Target(job.spec.endpoint.provider, job.base_url, project, job.model)


def targets_of(session: Session) -> list[tuple[Target, Session]]:
    """Each target that the job names, and the session as it is asked there; see `target_of`."""
    found: dict[str, Target] = {}
    asked = as_asked(session)
    if not session.job.targets:
        return [(target_of(session), session)]
    for (section, _), each in zip(session.job.targets, asked, strict=True):
        target = target_of(each)
        project = f"{target.project}/{section.name}" if session.options.offline else target.project
        found[section.name] = replace(
            target,
            project=found[section.same_project_as].project if section.same_project_as else project,
            name=section.name,
            priority=section.rank,
            takes=section.takes,
            takes_over=section.takes_over,
            weight=section.weight or 0.0,
            price_factor=Decimal(str(section.price_factor)),
        )
    return list(zip(found.values(), asked, strict=True))


def as_asked(session: Session) -> list[Session]:
    """The session as each of its targets is asked; itself where the job names none."""
    asked = [replace(session, job=job) for job in session.job.asked]
    if session.redo is None:
        return asked
    return [replace(each, redo=job) for each, job in zip(asked, session.redo.asked, strict=True)]


def project_at(job: Job) -> str:
    """Whose quota and bill it is: on Vertex AI a project's at a location, else that of whom the key belongs to.

    Raises `JobError` without a key or project.
    """
    if not job.bears_tokens:
        return known_project(key_of(job).value)
    project, location = job.place
    if not project:
        raise JobError(
            "no project for Vertex AI: [endpoint] project is not set, and GOOGLE_CLOUD_PROJECT is unset",
            "`export GOOGLE_CLOUD_PROJECT=…`, or in express mode name the variable of its key in [endpoint] key_env;"
            " without either: `--offline`",
        )
    return f"{project}/{location}"


@asynccontextmanager
async def open_services(session: Session) -> AsyncIterator[Services]:
    """Those who answer by the job, or the embedded emulator through the same client."""
    offline, targets = session.options.offline, targets_of(session)
    if not offline:
        check_certificates()
    accounts: dict[str, dict[str, Account]] = {}
    notes: dict[str, None] = {}
    renewals: list[Renewal] = []
    tokens: Tokens | None = None  # one identity for all
    wires: dict[str, Wire] = {}
    book = UploadBook()
    async with AsyncExitStack() as opened:
        by_network: dict[Network, Wire] = {}
        for target, each in targets:
            endpoint = each.job.spec.endpoint
            network = Network() if offline else network_of(each.job)
            if network not in by_network:
                by_network[network] = await opened.enter_async_context(wire_over(network, offline))
            wire = wires[target.access] = by_network[network]
            labels = tuple(sorted(each.job.spec.model.labels.items()))
            account = Account(
                wire, "offline", endpoint.api_version, endpoint.timeout_s, labels, each.job.spec.model.stream
            )
            account = replace(account, inline_bytes=inline_bytes(each.job), book=book)
            if each.job.bears_tokens and not offline:
                tokens = tokens or await google_tokens(wire)
                account = replace(account, key="", tokens=tokens)
            elif not offline:
                key = key_of(each.job)
                notes |= dict.fromkeys(key.warnings)
                renewals.append(Renewal(each.job, target, key))
                account = replace(account, key=key.value, renew=renewals[-1])
            accounts.setdefault(target.provider, {})[target.access] = account
        speakers = {name: SPEAKERS[name](known) for name, known in accounts.items()}
        connections = tuple(speakers[target.provider].open(target) for target, _ in targets)
        routes = [ranked([t for t, _ in targets if not t.name or t.name in names]) for names in session.job.rules]
        others = tuple(routes[:-1])
        fetches = session.job.spec.input.fetch_urls and not offline
        fetcher = Fetcher(inline_bytes(session.job)) if fetches else None
        yield Services(
            routes[-1], speakers, tuple(notes), tuple(renewals), tokens, wires, others, book, connections, fetcher
        )


def wire_over(network: Network, offline: bool) -> Wire:
    """Connections over a network, or the embedded emulator in its place."""
    return Wire(httpx.ASGITransport(_emulator()) if offline else None, network=network)


def _emulator() -> "Emulator":
    from pipeline.emulator import Emulator, EmulatorOptions  # takes 40 ms, and nothing else needs it

    return Emulator(EmulatorOptions(any_model=True, track_prompts=0, batch=True))


async def identified(session: Session) -> Session:
    """The session as a whole real or a rehearsal, by what the service says it is; free of charge, asked once."""
    if session.asked:
        return session
    async with open_services(session) as services:
        return await asked(session, services)


async def asked(session: Session, services: Services) -> Session:
    """As `identified`, with the services open."""
    if session.asked:
        return session
    targets = {target.access: target for target in services.targets}.values()
    kinds: dict[str, Kind] = dict.fromkeys((target.label for target in targets), "real")

    async def ask(target: Target) -> None:
        if await services.speaker(target).is_emulator(target):
            kinds[target.label] = "rehearsal"

    async with anyio.create_task_group() as group:  # each may take its time to be silent
        for target in targets:
            group.start_soon(ask, target)
    told = replace(session, kind=one_kind(kinds), asked=True)
    output_conflict(told.source, str(told.output_file))
    return told


def one_kind(kinds: Mapping[str, Kind]) -> Kind:
    """What all targets are, by their names. Raises `JobError` where some are emulators and some are not."""
    if len(set(kinds.values())) > 1:
        emulated, others = (
            ", ".join(label for label in kinds if (kinds[label] == "rehearsal") is it) for it in (True, False)
        )
        raise JobError(
            f"an emulator answers for {emulated}, and none for {others}: a rehearsal is never a result",
            "look at base_url of each [[target]], and whether each emulator runs; nothing was spent",
        )
    return next(iter(kinds.values()))
