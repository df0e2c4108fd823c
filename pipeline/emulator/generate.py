"""One `generateContent`: quota, refusals, faults, answer."""

import math
from base64 import urlsafe_b64encode
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import anyio
import orjson

from pipeline.emulator import bodies, faults, wire
from pipeline.emulator.chat import Chat
from pipeline.emulator.failures import failure
from pipeline.emulator.http import Call, Response, json_response
from pipeline.emulator.limits import next_midnight
from pipeline.emulator.messages import Refusal
from pipeline.emulator.oddities import Billed, changes_bytes, odd_bill, odd_body, odd_response
from pipeline.emulator.options import EmulatorOptions
from pipeline.emulator.quotas import Quotas, Violation, exhausted
from pipeline.emulator.replies import answer_to
from pipeline.emulator.stats import Seen, Stats
from pipeline.emulator.storage import Storage
from pipeline.emulator.streams import odd_stream, streamed
from pipeline.models import Model
from pipeline.records import EMULATOR_FIELD, EMULATOR_RESPONSE_ID

Body = dict[str, Any]

_RETIRED_AT = "2027-01-01T00:00:00Z"
_NEAR_MIDNIGHT_S = 120  # how long a request may be held until the day is another


class Generator:
    """The models behind `generateContent`; `clock` is the server's, in seconds since the epoch."""

    def __init__(self, options: EmulatorOptions, stats: Stats, clock: Callable[[], float], storage: Storage) -> None:
        self._options = options
        self._stats = stats
        self._clock = clock
        self._storage = storage
        self._quotas = Quotas(options)
        self._admitted = 0
        self._answers = 0
        self._born = f"{options.seed}/{clock()}"

    async def answer(self, call: Call, ask: wire.Ask, model: Model, key: str, chat: Chat | None = None) -> Response:
        """Serve one request, in the form of `chat` or as a stream; raises `Refusal` for what is refused.

        What the front end refuses (a body that is not this message, a prompt over the context) uses up no quota; what
        the model refuses, and a fault, does, as the service's billing pages say of 400 and 500.
        """
        tokens = self._read(ask, model, key)
        prompt = ask.prompt_hash()
        attempt = self._stats.attempts(prompt)
        luck = faults.luck(self._options.seed, "fault", prompt, attempt)
        fault = self._options.faults.pick(luck, self._admitted)
        self._admit(key, model.name, tokens.total(), prompt, fault, chat)
        self._stats.add_attempt(prompt)
        wire.check(ask, model)
        luck = faults.luck(self._options.seed, "detail", prompt, attempt)
        flex_luck = faults.luck(self._options.seed, "flex", prompt, attempt)
        flex_s = 2.0 * luck * self._options.flex_wait_s if ask.tier == "flex" else 0.0
        if not await self._wait(_server_timeout(call), luck, flex_s):
            fault = "504"
        elif ask.tier == "flex" and flex_luck >= self._options.flex_share:
            raise self._shed(model.name, tokens.total(), prompt, luck)
        if fault:
            self._stats.faults[fault] += 1
        if fault == "late_day":
            response = await self._late_refusal(model.name)
        else:
            response = failure(fault, luck, call) or self._answered(call, ask, tokens, model, prompt, fault, chat)
        self._note(model.name, 0 if response.broken else response.status, tokens.total(), prompt, fault)
        return response

    def line(self, ask: wire.Ask, model: Model, key: str, lost: bool) -> Body:
        """The answer to one line of a batch, billed, and `lost` where it is not handed out; raises `Refusal`.

        No quota counts it, and it takes no time of its own. Of the faults those meet it that stand in an answer.
        """
        tokens = self._read(ask, model, key)
        wire.check(ask, model)
        prompt = ask.prompt_hash()
        luck = faults.luck(self._options.seed, "fault", prompt, self._stats.attempts(prompt))
        fault = self._options.faults.pick(luck, self._admitted)
        self._admitted += 1
        fault = fault if fault in faults.IN_LINES else None
        if fault:
            self._stats.faults[fault] += 1
        body = self._body(ask, tokens, model, prompt, fault, {}, lost)
        body.get("usageMetadata", {}).pop("serviceTier", None)
        return {EMULATOR_FIELD: True, **body} if self._options.marked else body

    def line_tokens(self, ask: wire.Ask, model: Model, key: str) -> int:
        """What a line counts while it is enqueued; raises `Refusal`."""
        return self._read(ask, model, key).total()

    def _read(self, ask: wire.Ask, model: Model, key: str) -> Counter[str]:
        """Tokens of what is asked; raises `Refusal` where the model takes no so many."""
        tokens = wire.prompt_tokens(ask.fields, self._options.tokenizer, model.name, self._storage.of(key))
        tokens["TEXT"] += ask.resumed[1]  # what was written so far is read again
        if tokens.total() > model.context_tokens:
            raise bodies.too_many_tokens(model.context_tokens)
        return tokens

    def _admit(self, key: str, model: str, tokens: int, prompt: int, fault: str | None, chat: Chat | None) -> None:
        quota = self._quotas.of(key, model)
        if quota is not None:
            now = self._clock()
            violations = quota.violations(now, tokens)
            if violations:
                quota.add_rejected(now)
                self._stats.rate_limited += 1
                self._note(model, 429, tokens, prompt, None)
                # OpenAI tells how long its day takes; only Google repeats the minute.
                options = replace(self._options, day_delay="true") if chat and not chat.googles else self._options
                raise Refusal(429, exhausted(violations, model, now, options))
            if self._options.count_failed or faults.bill_of(fault) != "no":
                quota.add(now, tokens)
        self._admitted += 1

    def _shed(self, model: str, tokens: int, prompt: int, luck: float) -> Refusal:
        """What is asked in flex is turned away, in one of the two ways that were seen; it has used up quota."""
        self._stats.shed += 1
        status, words = (503, bodies.OVERLOADED) if luck < 0.5 else (429, bodies.EXHAUSTED)
        self._note(model, status, tokens, prompt, None)
        return Refusal(status, bodies.error(status, words))

    async def _wait(self, timeout_s: float, luck: float, more_s: float) -> bool:
        """Take the time an answer takes; False when the caller's own deadline for the server came first."""
        latency_s = self._options.latency_s + luck * self._options.latency_jitter_s + more_s
        if latency_s > 0:
            await anyio.sleep(min(latency_s, timeout_s))
        return latency_s <= timeout_s

    async def _late_refusal(self, model: str) -> Response:
        """The day's refusal of a request that came just before midnight Pacific, sent just after it."""
        now = self._clock()
        midnight = next_midnight(now)
        if midnight - now <= _NEAR_MIDNIGHT_S:
            await anyio.sleep(midnight - now + 1)
        violation = Violation("rpd", self._options.rpd or 1_000, 1)
        return json_response(exhausted([violation], model, self._clock(), self._options), 429)

    def _answered(
        self,
        call: Call,
        ask: wire.Ask,
        tokens: Counter[str],
        model: Model,
        prompt: int,
        fault: str | None,
        chat: Chat | None,
    ) -> Response:
        body = self._body(ask, tokens, model, prompt, fault, call.shown() if fault == "echo" else {})
        if chat is not None:
            told = chat.told(body, may_stream=not changes_bytes(fault), pause_s=self._options.pause_s)
            return odd_response(fault, odd_stream(fault, told))
        if ask.stream and not changes_bytes(fault):
            told = streamed(body, ask.stream, self._options.pause_s, ask.tier)
            return odd_response(fault, odd_stream(fault, told))
        return odd_response(fault, Response(200, orjson.dumps(body), tier=ask.tier))

    def _body(
        self,
        ask: wire.Ask,
        tokens: Counter[str],
        model: Model,
        prompt: int,
        fault: str | None,
        shown: Mapping[str, str],
        lost: bool = False,
    ) -> Body:
        """The body of an answer, which is billed."""
        version = self._options.model_version or model.name
        part = self._options.part_tokens
        if part is None and model.continues:
            part = model.listed_output_tokens if ask.stream else model.max_output_tokens
        limit = model.max_output_tokens if part is None else model.context_tokens
        if fault == "block":
            billed = Billed(model.name, tokens.total(), 0)
            body = wire.blocked(wire.usage(tokens, ask.tier), version, self._response_id())
        else:
            answer = answer_to(ask, limit, self._options.thinking_tokens, self._options.tokenizer, fault, part)
            given = tokens.total() + answer.tool_tokens
            billed = Billed(model.name, given, answer.output_tokens, answer.thinking_tokens)
            billed = odd_bill(fault, billed, ask.config.get("maxOutputTokens") or limit)
            counters = wire.usage(tokens, ask.tier, billed.output_tokens, billed.thinking_tokens, answer.tool_tokens)
            if ask.cached_tokens:
                billed = replace(billed, cached_tokens=ask.cached_tokens)
                counters["cachedContentTokenCount"] = ask.cached_tokens
            body = odd_body(fault, wire.answered(answer, counters, version, self._response_id()), shown)
        if self._options.model_stage:
            body["modelStatus"] = {"modelStage": self._options.model_stage, "retirementTime": _RETIRED_AT}
        bill: faults.Bill = "lost" if lost else faults.bill_of(fault)
        self._stats.add_bill(billed, bill)
        if bill == "yes":
            output = billed.output_tokens + billed.thinking_tokens
            self._stats.add_answer(prompt, billed.input_tokens, output)
        return body

    def _response_id(self) -> str:
        self._answers += 1
        name = f"{self._born}/{self._answers}"
        mark = EMULATOR_RESPONSE_ID if self._options.marked else ""
        return mark + urlsafe_b64encode(blake2b(name.encode(), digest_size=16).digest()).decode().rstrip("=")

    def _note(self, model: str, status: int, tokens: int, prompt: int, fault: str | None) -> None:
        self._stats.log.append(Seen(self._clock(), model, status, tokens, prompt, fault))


def _server_timeout(call: Call) -> float:
    """The caller's deadline for the server in seconds (`X-Server-Timeout`)."""
    value: Any = call.header(b"x-server-timeout")
    return float(value) if value.isdecimal() and int(value) else math.inf
