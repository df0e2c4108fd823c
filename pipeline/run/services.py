"""Who answers a session: its targets, and the providers that speak to them."""

import difflib
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import httpx

from pipeline.environment import check_certificates
from pipeline.errors import AuthError, JobError, ServiceError
from pipeline.job import key_of
from pipeline.keys import Key
from pipeline.places import Kind, quota_file
from pipeline.prompts import Prompt
from pipeline.providers.base import Account, Provider, Providers
from pipeline.providers.connection import Connected
from pipeline.providers.gemini import Gemini
from pipeline.providers.openai import OpenAI
from pipeline.providers.stored import parser_of
from pipeline.providers.transport import Wire
from pipeline.quota.book import QuotaBook, read_known
from pipeline.quota.daily import day_of, until_text
from pipeline.quota.stops import refused_by_proxy
from pipeline.records import Failure, Parse, Reply
from pipeline.run.prepare import Session
from pipeline.run.renewal import Renewal, known_project
from pipeline.source import output_conflict
from pipeline.targets import Route, Target

if TYPE_CHECKING:
    from pipeline.emulator import Emulator

_EMULATOR_URL = "http://emulator"
SPEAKERS: Mapping[str, type[Connected]] = {"gemini": Gemini, "openai": OpenAI}
"""Who speaks each protocol that a job may name."""


@dataclass(frozen=True, slots=True)
class Services:
    """The targets of a session, open, and who speaks to each."""

    route: Route
    providers: Providers
    notes: tuple[str, ...] = ()  # on the keys, before the first call
    renewals: tuple[Renewal, ...] = ()  # what they have to say comes in the middle of the run

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

    async def count_tokens(self, prompt: Prompt) -> int | Failure:
        """Input tokens as the first target's model counts them, free of charge."""
        return await self.speaker(self.route.first).count_tokens(prompt, self.route.first)


Opening = Callable[[Session], AbstractAsyncContextManager[Services]]


def target_of(session: Session) -> Target:
    """The target that the job names, or the embedded emulator. Raises `JobError` without a key."""
    job, offline = session.job, session.options.offline
    return Target(
        Gemini.name if offline else job.spec.endpoint.provider,  # all that the emulator speaks
        _EMULATOR_URL if offline else job.base_url,
        "offline" if offline else known_project(key_of(job).value),
        session.working.model,
        rates=session.rates,
        limits=session.limits,
    )


@asynccontextmanager
async def open_services(session: Session) -> AsyncIterator[Services]:
    """The service that the job names, or the embedded emulator through the same client."""
    job, target = session.job, target_of(session)
    offline = session.options.offline
    if not offline:
        check_certificates()
    key = Key("offline", "") if offline else key_of(job)
    async with Wire(httpx.ASGITransport(_emulator()) if offline else None) as wire:
        endpoint = job.spec.endpoint
        renewals = () if offline else (Renewal(job, target, key),)
        account = Account(wire, key.value, endpoint.api_version, endpoint.timeout_s, *renewals)
        speaker = SPEAKERS[target.provider]({target.access: account})
        speaker.open(target)
        yield Services(Route((target,)), {speaker.name: speaker}, tuple(key.warnings), renewals)


def _emulator() -> "Emulator":
    from pipeline.emulator import Emulator, EmulatorOptions  # takes 40 ms, and nothing else needs it

    return Emulator(EmulatorOptions(any_model=True, track_prompts=0))


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
    first = services.route.first
    kind: Kind = "rehearsal" if await services.speaker(first).is_emulator(first) else "real"
    told = replace(session, kind=kind, asked=True)
    output_conflict(told.source, str(told.output))
    return told


async def check_service(session: Session, forget: bool = False) -> list[tuple[str, str, str]]:
    """Ask the service whether the key and the model are good; free of charge. Raises `PipelineError`.

    What earlier runs learned of the quota is told, and with `forget` forgotten.
    """
    async with open_services(session) as services:
        target = services.route.first
        found = await services.speaker(target).list_models(target)
        if isinstance(found, Failure):
            if found.kind == "proxy":
                raise refused_by_proxy(found)
            if found.kind == "auth":
                raise AuthError(
                    f"{target.endpoint} refuses the key: {found.message}", "look at the key; nothing was spent"
                )
            if found.http_status is None and found.kind == "transient":
                raise ServiceError(
                    f"{target.endpoint} does not answer: {found.message}",
                    "look at the network and at [endpoint] base_url; nothing was spent",
                )
            raise ServiceError(
                f"{target.endpoint} does not answer as it should: {found.message}",
                "check the key and [endpoint] base_url; nothing was spent",
            )
        if target.model not in found:
            raise JobError(
                f"{target.endpoint} does not offer {target.model} to this key", _offered(target.model, found)
            )
        told = await asked(session, services)
        answers = "answers; it is an emulator: a run is a rehearsal" if told.rehearsal else "answers"
        facts = [("endpoint", target.endpoint, answers), ("model", target.model, "offered to this key")]
        return facts if session.options.offline else [*facts, *_learned(told, target, forget)]


def _offered(model: str, names: list[str]) -> str:
    """What is closest to the model that was asked for, or some of what there is."""
    if close := difflib.get_close_matches(model, names, n=1):
        return f"did you mean {close[0]}?"
    return f"it offers {', '.join(names[:12])}" if names else "it offers no model at all"


def _learned(session: Session, target: Target, forget: bool) -> Iterator[tuple[str, str, str]]:
    """What earlier runs left in the quota book that holds up the next, or would have."""
    path, name = quota_file(session.kind), target.quota
    now = time.time()
    known = read_known(path, name, day_of(now, target.limits.reset_zone), now)
    limits = [(meter, f"{limit:,.0f}") for meter, limit in (("rpm", known.rpm), ("tpm", known.tpm)) if limit]
    if forget:
        with QuotaBook(path, name) as book:
            book.forget()
        forgotten = [*(f"{meter} {limit}" for meter, limit in limits), *["day used up"] * bool(known.day_opens_at)]
        yield "forgotten", ", ".join(forgotten) or "nothing", "of what earlier runs learned of this quota"
        return
    for meter, limit in limits:
        yield meter, limit, "learned; `--forget` forgets it"
    if known.day_opens_at is not None:
        yield "day", "used up", f"it returns {until_text(now, known.day_opens_at)}; `--forget` forgets it"
