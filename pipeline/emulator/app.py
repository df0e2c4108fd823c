"""The emulator as an ASGI app: routes, keys and models."""

import re
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

from pipeline.emulator import bodies, catalog, chat, chat_batches, vertex, wire
from pipeline.emulator.batch_faults import Draw
from pipeline.emulator.batch_service import BatchService
from pipeline.emulator.caches import Caches
from pipeline.emulator.chat_batches import ChatBatches
from pipeline.emulator.chat_files import ChatFiles
from pipeline.emulator.generate import Generator
from pipeline.emulator.http import Call, ClientGone, Receive, Response, Scope, Send, Sender, json_response, read_call
from pipeline.emulator.messages import Refusal
from pipeline.emulator.options import EmulatorOptions
from pipeline.emulator.stats import Stats
from pipeline.emulator.storage import Storage
from pipeline.models import Model

_PATH = re.compile(r"/(v1|v1beta)/models(?:/([^/:]+)(?::(\w+))?)?")
_CHAT = re.compile(r"/(v1|v1beta/openai|api/v1)/(chat/completions|models)(?:/(.+))?")
_STATS = "/emulator/stats"
_METHODS = {
    ("POST", "generateContent"): "GenerativeService.GenerateContent",
    ("POST", "streamGenerateContent"): "GenerativeService.StreamGenerateContent",
    ("POST", "countTokens"): "GenerativeService.CountTokens",
    ("GET", "models.get"): "ModelService.GetModel",
    ("GET", "models.list"): "ModelService.ListModels",
}
_PAGE = 50
_MAX_PAGE = 1_000


class Emulator:
    """An ASGI app that answers as the Gemini API does, and to chat completions too; `stats` counts what it saw.

    `clock` returns seconds since the epoch and moves quotas and the Date header; waiting is the event loop's. In
    process there is no connection to break: `connection_lost` makes the exception that is raised into the client.
    """

    def __init__(
        self,
        options: EmulatorOptions | None = None,
        *,
        clock: Callable[[], float] = time.time,
        connection_lost: Callable[[str], Exception] = ConnectionResetError,
    ) -> None:
        self.options = options or EmulatorOptions()
        self.stats = Stats(self.options.track_prompts, deque(maxlen=self.options.log_size))
        offset_s = self.options.offset_s

        self._uses = Counter[str]()  # requests for answers, by key

        def server_clock() -> float:
            return clock() + offset_s

        self._gatekeeper = vertex.Gatekeeper(self.options, server_clock)
        draw = Draw(self.options.seed, self.options.batch_faults)
        self._storage = Storage(self.options, self.stats, server_clock, draw)
        self._generator = Generator(self.options, self.stats, server_clock, self._storage)
        self._caches = Caches(self.options, server_clock)
        self.stats.caches = self._caches.counts
        self.stats.batch_faults = draw.hits
        self._batches = BatchService(
            self.options,
            self.stats,
            server_clock,
            draw,
            self._generator,
            self._storage,
            self._caches,
            self._served,
        )
        self._chat_files = ChatFiles(self.options, self.stats, server_clock, draw)
        places: dict[bool, chat_batches.Files] = {False: self._chat_files, True: self._storage}
        self._chat_batches = {
            googles: ChatBatches(
                self.options,
                self.stats,
                server_clock,
                draw,
                self._generator,
                files,
                lambda name: self._model(_bare(name), "v1beta", "generateContent"),
                self._served,
                googles=googles,
            )
            for googles, files in places.items()
        }
        self._queues = (self._batches.queue, *(each.queue for each in self._chat_batches.values()))
        self._sender = Sender(server_clock, connection_lost, self.options.marked)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request."""
        if scope["type"] != "http":
            raise ValueError(f"the emulator speaks HTTP only, not {scope['type']}")
        call = read_call(scope, receive)
        if call.path == _STATS:
            states = sum([await queue.states() for queue in self._queues], Counter[str]())
            body = self.stats.body(call.parameter("prompts") == "true", call.parameter("log") == "true")
            body["batches"]["states"] = dict(states)
            await self._sender.send(json_response(body), scope, receive, send)
            return
        if call.path == vertex.TOKEN_PATH:
            await self._sender.send(json_response(self._gatekeeper.token()), scope, receive, send)
            return
        self.stats.in_flight += 1
        self.stats.max_in_flight = max(self.stats.max_in_flight, self.stats.in_flight)
        try:
            response = await self._respond(call)
            self.stats.by_status[0 if response.broken else response.status] += 1
            await self._sender.send(response, scope, receive, send)
        except ClientGone:
            return
        finally:
            self.stats.in_flight -= 1

    async def _respond(self, call: Call) -> Response:
        for queue in self._queues:
            queue.settle()
        parted = chat_batches.PATH.fullmatch(call.path) if self.options.batch else None
        if parted is not None and (parted[1] != "v1" or _bearer(call)):
            response = await self._answered(self._batches_of_chats(call, *parted.groups()))
            return chat.refused(response, parted[1] == chat.GOOGLES) if response.status >= 400 else response
        asked = _CHAT.fullmatch(call.path)
        if asked is not None and (asked[1] != "v1" or asked[2] == "chat/completions" or _bearer(call)):
            response = await self._answered(self._chat(call, *asked.groups()))
            return chat.refused(response, asked[1] == chat.GOOGLES) if response.status >= 400 else response
        return await self._answered(self._native(call))

    async def _native(self, call: Call) -> Response:
        asked = vertex.asked(call)
        if asked is None and self._caches.is_asked(call):
            return await self._caches.answer(call, self._holder(call))
        return await (self._route(call) if asked is None else self._vertex(call, asked))

    def _holder(self, call: Call) -> str:
        """Who pays for a cache."""
        if asked := vertex.asked_of_caches(call):
            return self._gatekeeper.payer(call, asked)
        return self._key(call, "v1beta", "CacheService")

    async def _answered(self, route: Awaitable[Response]) -> Response:
        try:
            return await route
        except Refusal as refusal:
            return json_response(refusal.body, refusal.status)

    async def _chat(self, call: Call, base: str, what: str, name: str | None) -> Response:
        googles = base == chat.GOOGLES
        if (call.method == "POST") != (what == "chat/completions") or (name and what != "models"):
            raise bodies.unknown_path(call.path)
        self.stats.requests += what == "chat/completions"
        key = _bearer(call)
        if not key:
            raise chat.no_key(googles)
        self._check(key, what == "chat/completions", bodies.bad_key if googles else chat.bad_key)
        if what == "models":
            models = [model for model in self._models("v1beta") if "generateContent" in catalog.methods(model)]
            if name is None:
                return json_response(chat.listing(models, googles))
            return json_response(chat.resource(self._model(_bare(name), "v1beta", "models.get"), googles))
        asked = chat.read(await call.body(), call.path)
        model = self._model(asked.model, "v1beta", "generateContent")
        return await self._generator.answer(call, asked.ask, self._served(model), self._project(key), asked)

    async def _batches_of_chats(self, call: Call, base: str, what: str, name: str | None, part: str | None) -> Response:
        googles = base == chat.GOOGLES
        if googles and what == "files":
            raise bodies.unknown_path(call.path)
        key = _bearer(call)
        if not key:
            raise chat.no_key(googles)
        self._check(key, False, bodies.bad_key if googles else chat.bad_key)
        owner = self._project(key)
        if what == "files":
            return await self._chat_files.answer(call, name, part, owner)
        return await self._chat_batches[googles].answer(call, name, part, owner)

    async def _route(self, call: Call) -> Response:
        if self._batches.serves(call.path):
            return await self._batches.answer(
                call,
                lambda version, verb: self._key(call, version, f"GenerativeService.{verb.title()}Batch"),
                lambda version, name: self._model(name, version, "batchGenerateContent"),
            )
        if self._storage.serves(call.path):
            version = "v1beta" if "v1beta" in call.path else "v1"
            return await self._storage.answer(call, lambda: self._key(call, version, "FileService.Files"))
        match = _PATH.fullmatch(call.path)
        if match is None:
            raise bodies.unknown_path(call.path)
        version, name, method = match.groups()
        method = method or ("models.get" if name else "models.list")
        if (call.method, method) not in _METHODS:
            raise bodies.unknown_path(call.path)
        stream = _stream_of(call, method)
        if method == "generateContent" or stream:
            self.stats.requests += 1
        key = self._key(call, version, _METHODS[call.method, method])
        if method == "models.list":
            return json_response(_list_models(call, self._models(version)))
        model = self._model(name, version, "generateContent" if stream else method)
        if method == "models.get":
            return json_response(catalog.resource(model))
        if method == "countTokens":
            return self._counted(wire.read_count(await call.body()), model, key)
        ask = wire.read_generate(await call.body(), stream)
        ask = self._caches.filled(ask, model, key)
        return await self._generator.answer(call, ask, self._served(model), key)

    async def _vertex(self, call: Call, asked: vertex.Asked) -> Response:
        stream = _stream_of(call, asked.method)
        if asked.method == "generateContent" or stream:
            self.stats.requests += 1
        payer = self._gatekeeper.payer(call, asked)
        if asked.method == "models.list":
            return json_response(vertex.listing())
        model = catalog.any_model(asked.model) if self.options.any_model else catalog.find(asked.model, "v1")
        if model is None or catalog.retired(asked.model):
            raise vertex.unknown_model(asked)
        if asked.method == "models.get":
            return json_response(vertex.published(model.name))
        if asked.method == "countTokens":
            return self._counted(vertex.read_count(await call.body()), model, payer)
        try:
            ask = wire.read_generate(await (await vertex.with_roles(call)).body(), stream)
            ask = self._caches.filled(ask, model, payer)
            answer = await self._generator.answer(call, ask, self._served(model), payer)
            return vertex.answered(answer)
        except Refusal as refusal:
            raise vertex.worded(refusal, model.name) from None

    def _key(self, call: Call, version: str, method: str) -> str:
        if _bearer(call):
            raise bodies.wrong_credential(f"google.ai.generativelanguage.{version}.{method}")
        key = call.header(b"x-goog-api-key") or call.parameter("key")
        if not key:
            raise bodies.no_key()
        self._check(key, method.endswith("GenerateContent"), bodies.bad_key)
        return self._project(key)

    def _project(self, key: str) -> str:
        """Whose quota, files and batches they are."""
        return self.options.projects.get(key, key)

    def _check(self, key: str, counts: bool, bad: Callable[..., Refusal]) -> None:
        """Raise what `bad` makes of a key that is not taken, or not any more; `counts`: an answer is asked for."""
        accepted = key in self.options.keys if self.options.keys else not key.startswith("invalid")
        if not accepted:
            raise bad()
        if self.options.key_ends_after is not None:
            if self._uses[key] >= self.options.key_ends_after:
                raise bad("API key expired. Please renew the API key.")
            self._uses[key] += counts

    def _models(self, version: str) -> list[Model]:
        return [*catalog.models_of(version), *map(catalog.any_model, self.options.models)]

    def _model(self, name: str, version: str, method: str) -> Model:
        if self.options.any_model or name in self.options.models:
            return catalog.any_model(name)
        if catalog.retired(name):
            raise bodies.retired_model(name, catalog.SUCCESSOR)
        model = catalog.find(name, version)
        if model is None or (method != "models.get" and method not in catalog.methods(model)):
            raise bodies.unknown_model(name, version, method)
        return model

    def _served(self, model: Model) -> Model:
        """The model that answers for `model`: the service routes some names to others, and so may an option."""
        told = self.options.routes.get(model.name)
        return catalog.any_model(told) if told else catalog.routed(model.name)

    def _counted(self, fields: wire.Fields, model: Model, key: str) -> Response:
        self.stats.count_tokens += 1
        tokens = wire.prompt_tokens(fields, self.options.tokenizer, model.name, self._storage.of(key))
        return json_response(wire.token_counts(tokens))


def _stream_of(call: Call, method: str) -> Literal["", "sse", "array"]:
    """The form of a streamed answer; empty where none is asked for."""
    if method != "streamGenerateContent":
        return ""
    return "sse" if call.parameter("alt") == "sse" else "array"


def _bearer(call: Call) -> str:
    """The bearer token; empty where there is none."""
    kind, _, token = call.header(b"authorization").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def _bare(name: str) -> str:
    return name.removeprefix("models/")


def is_private(path: str, query: bytes) -> bool:
    """Whether the answer would tell of single prompts or requests."""
    return path == _STATS and bool(query)


def _list_models(call: Call, models: Sequence[Model]) -> dict[str, Any]:
    """One page of models; `pageSize` and `pageToken` as the service reads them."""
    size, token = call.parameter("pageSize") or str(_PAGE), call.parameter("pageToken") or "0"
    if not size.isdecimal() or not token.isdecimal():
        raise bodies.refusal(400, "Request contains an invalid argument.")
    start, stop = int(token), int(token) + min(int(size) or _PAGE, _MAX_PAGE)
    page: dict[str, Any] = {"models": [catalog.resource(model) for model in models[start:stop]]}
    if stop < len(models):
        page["nextPageToken"] = str(stop)
    return page
