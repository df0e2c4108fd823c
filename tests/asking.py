"""Prompts, targets and dispatchers for tests that are about something else."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx

from pipeline.dispatch.desk import Tries
from pipeline.dispatch.dispatcher import Dispatcher
from pipeline.prompts import Params, Prompt, said
from pipeline.providers.answers import parse_reply
from pipeline.providers.base import Account, Provider
from pipeline.providers.gemini import Gemini
from pipeline.providers.transport import Wire
from pipeline.quota.book import QuotaBook
from pipeline.records import Failure, Limits, Reply, Step
from pipeline.run.prepare import Session
from pipeline.run.services import Opening, Services, target_of
from pipeline.targets import Route, Target

MODEL = "gemini-3.5-flash-lite"
TARGET = Target("gemini", "https://example", "project", MODEL)
ROUTE = Route((TARGET,))
UNLIMITED = Limits(rpm=0, tpm=0)
"""No limit on anything but what is in flight: a limit of 0 means that there is none."""

_PARAMS = Params()


def ask(
    row: int = 0,
    text: str = "",
    *,
    step: Step = "answer",
    params: Params = _PARAMS,
    tokens: int = 10,
    fingerprint: str = "",
    model: str = MODEL,
    **where: Any,
) -> Prompt:
    """A prompt that is one text; with `fingerprint` the answer of `model` to it is called that."""
    prompt = Prompt(row, str(row), step, said(text), params, tokens, **where)
    return prompt.known_as(fingerprint, model) if fingerprint else prompt


class Stub:
    """A provider that answers nothing, and counts as is estimated; tests derive from it."""

    name = "gemini"

    async def generate(self, prompt: Prompt, target: Target) -> Reply | Failure:
        raise NotImplementedError

    def parse(self, raw: bytes) -> Reply:
        return parse_reply(raw)

    async def count_tokens(self, prompt: Prompt, target: Target) -> int | Failure:
        return prompt.input_tokens_est

    async def list_models(self, target: Target) -> list[str] | Failure:
        return [target.model]

    async def is_emulator(self, target: Target) -> bool:
        return False


class Counting(Stub):
    """A provider that counts as it is told to."""

    def __init__(self, count: Callable[[Prompt], Awaitable[int | Failure]]) -> None:
        self._count = count

    async def count_tokens(self, prompt: Prompt, target: Target) -> int | Failure:
        return await self._count(prompt)


def dispatcher_of(
    send: Callable[[Prompt], Awaitable[Reply | Failure]],
    limits: Limits,
    *,
    count_tokens: Callable[[Prompt], Awaitable[int | Failure]] | None = None,
    book: QuotaBook | None = None,
    **options: Any,
) -> Dispatcher:
    """A dispatcher in front of one target with these limits."""
    target = Target("gemini", "https://example", "project", MODEL, limits=limits)
    books: Mapping[str, QuotaBook] = {} if book is None else {target.quota: book}

    async def to_target(prompt: Prompt, target: Target, tries: Tries) -> Reply | Failure:
        return await send(prompt)

    providers = {"gemini": Counting(count_tokens)} if count_tokens else None
    return Dispatcher(to_target, Route((target,)), providers=providers, books=books, **options)


def opening(
    transport: httpx.AsyncBaseTransport, *, base_url: str = "http://service", timeout_s: float = 30.0
) -> Opening:
    """Opens a session's services with everything that is sent going to `transport`."""

    @asynccontextmanager
    async def opened(session: Session) -> AsyncIterator[Services]:
        target = replace(target_of(session), base_url="http://service")
        async with Wire(transport) as wire:
            gemini = Gemini({target.access: Account(wire, "AQ.test", timeout_s=timeout_s)})
            yield Services(Route((target,)), {gemini.name: gemini})

    return opened


def opening_of(provider: Provider) -> Opening:
    """Opens a session's services with this provider in the place of its own."""

    @asynccontextmanager
    async def opened(session: Session) -> AsyncIterator[Services]:
        target = replace(target_of(session), provider=provider.name)
        yield Services(Route((target,)), {provider.name: provider})

    return opened
