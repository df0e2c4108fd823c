"""`cachedContents`: what is kept of prompts that begin alike, until it ends, and what a prompt is that names it."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

from pipeline.emulator import bodies, catalog, wire
from pipeline.emulator.http import Call, Response, json_response
from pipeline.emulator.messages import STRING, Message, Repeated, parse
from pipeline.emulator.options import EmulatorOptions
from pipeline.emulator.schema import CONTENT, TOOL, TOOL_CONFIG
from pipeline.models import Model, answering, assumed

_CREATE = Message(
    name=STRING,
    model=STRING,
    display_name=STRING,
    contents=Repeated(CONTENT),
    system_instruction=CONTENT,
    tools=Repeated(TOOL),
    tool_config=TOOL_CONFIG,
    ttl=STRING,
    expire_time=STRING,
)
_UPDATE = Message(name=STRING, ttl=STRING, expire_time=STRING)
_PATH = re.compile(r"/(?:v1|v1beta|v1beta1)/((?:projects/[^/]+/locations/[^/]+/)?cachedContents)(?:/([^/:]+))?")
_KEPT = ("contents", "systemInstruction", "tools", "toolConfig")
_USUAL = timedelta(hours=1)
_PAGE = 1_000
_TOGETHER = (
    "CachedContent can not be used with GenerateContent request setting system_instruction, tools or tool_config.\n\n"
    "Proposed fix: move those values to CachedContent from GenerateContent request."
)


@dataclass(frozen=True, slots=True)
class Cached:
    """One cache: whose it is, its metadata, and what prompts that name it begin with."""

    payer: str
    name: str
    model: str  # as it was named
    display_name: str
    fields: wire.Fields
    tokens: int
    created_at: datetime
    updated_at: datetime
    ends_at: datetime

    def told(self) -> dict[str, Any]:
        """Its metadata: what is kept is never told."""
        named = {"displayName": self.display_name} if self.display_name else {}
        return {
            "name": self.name,
            "model": self.model,
            **named,
            "createTime": _written(self.created_at),
            "updateTime": _written(self.updated_at),
            "expireTime": _written(self.ends_at),
            "usageMetadata": {"totalTokenCount": self.tokens},
        }


class Caches:
    """All caches of the service; `clock` is its own."""

    def __init__(self, options: EmulatorOptions, clock: Callable[[], float]) -> None:
        self._options, self._clock = options, clock
        self._kept: dict[str, Cached] = {}
        self.counts = Counter[str]()  # created, updated and deleted

    def is_asked(self, call: Call) -> bool:
        """Whether a path is of caches."""
        return _PATH.fullmatch(call.path) is not None

    async def answer(self, call: Call, payer: str) -> Response:
        """Serve one request of whoever pays; raises `Refusal`."""
        match = _PATH.fullmatch(call.path)
        assert match
        parent, number = match.groups()
        name = f"{parent}/{number}" if number else ""
        match call.method, bool(number):
            case "POST", False:
                return json_response(self._created(parse(_CREATE, await call.body()), parent, payer).told())
            case "GET", False:
                return json_response(self._listed(call, payer, parent))
            case "GET", True:
                return json_response(self._found(name, payer).told())
            case "PATCH", True:
                return json_response(self._updated(self._found(name, payer), await call.body()).told())
            case "DELETE", True:
                self._found(name, payer)
                del self._kept[name]
                self.counts["deleted"] += 1
                return json_response({})
        raise bodies.unknown_path(call.path)

    def filled(self, ask: wire.Ask, model: Model, payer: str) -> wire.Ask:
        """What is asked, with what the cache holds that it names; raises `Refusal`."""
        name = ask.fields.get("cachedContent")
        if not name:
            return ask
        if any(ask.fields.get(field) for field in ("systemInstruction", "tools", "toolConfig")):
            raise bodies.refusal(400, _TOGETHER)
        cached = self._found(name, payer)
        if _bare(cached.model) != model.name:
            raise bodies.refusal(
                400,
                f"Model used by GenerateContent request (models/{model.name}) and CachedContent ({cached.model}) has to"
                " be the same.",
            )
        fields = {**ask.fields, **cached.fields}
        fields["contents"] = [*(cached.fields.get("contents") or ()), *(ask.fields.get("contents") or ())]
        return replace(ask, fields=fields, cached_tokens=cached.tokens)

    def _created(self, fields: wire.Fields, parent: str, payer: str) -> Cached:
        named = fields.get("model", "")
        model = _bare(named)
        known = catalog.any_model(model) if self._options.any_model else catalog.find(model, "v1beta")
        if known is None or not known.explicit_caches:
            raise bodies.unknown_model(model, "v1beta", "createCachedContent")
        kept = {
            name: fields[name] for name in ("contents", "systemInstruction", "tools", "toolConfig") if name in fields
        }
        tokens = wire.prompt_tokens(kept, self._options.tokenizer, model).total()
        least = assumed(answering(model, datetime.fromtimestamp(self._clock(), UTC).date())).min_cached_tokens
        if tokens < least:
            raise bodies.refusal(
                400,
                f"Cached content is too small. total_token_count={tokens}, min_total_token_count={least}",
            )
        now = datetime.fromtimestamp(self._clock(), UTC)
        self.counts["created"] += 1
        number = blake2b(f"{self._options.seed}/{self.counts['created']}".encode(), digest_size=10).hexdigest()
        ends_at = self._end(fields, now) or now + _USUAL
        made = Cached(
            payer, f"{parent}/{number}", named, fields.get("displayName", ""), kept, tokens, now, now, ends_at
        )
        self._kept[made.name] = made
        return made

    def _found(self, name: str, payer: str) -> Cached:
        found = self._kept.get(name)
        now = datetime.fromtimestamp(self._clock(), UTC)
        if found is None or found.payer != payer or found.ends_at <= now:
            if name.startswith("projects/"):
                raise bodies.refusal(404, f"Not found: cached content metadata for {name.rpartition('/')[2]}.")
            raise bodies.refusal(403, "CachedContent not found (or permission denied)")
        return found

    def _updated(self, found: Cached, body: bytes) -> Cached:
        now = datetime.fromtimestamp(self._clock(), UTC)
        ends_at = self._end(parse(_UPDATE, body), now)
        if ends_at is None:
            raise bodies.refusal(400, "Request contains an invalid argument.")
        made = self._kept[found.name] = replace(found, updated_at=now, ends_at=ends_at)
        self.counts["updated"] += 1
        return made

    def _listed(self, call: Call, payer: str, parent: str) -> dict[str, Any]:
        now = datetime.fromtimestamp(self._clock(), UTC)
        own = [
            each.told()
            for each in self._kept.values()
            if each.payer == payer and each.ends_at > now and each.name.startswith(f"{parent}/")
        ]
        size, token = call.parameter("pageSize") or str(_PAGE), call.parameter("pageToken") or "0"
        if not size.isdecimal() or not token.isdecimal():
            raise bodies.refusal(400, "Request contains an invalid argument.")
        start, stop = int(token), int(token) + min(int(size) or _PAGE, _PAGE)
        page: dict[str, Any] = {"cachedContents": own[start:stop]} if own else {}
        return page | ({"nextPageToken": str(stop)} if stop < len(own) else {})

    def _end(self, fields: wire.Fields, now: datetime) -> datetime | None:
        try:
            if ttl := fields.get("ttl"):
                return now + timedelta(seconds=float(ttl.removesuffix("s")))
            if at := fields.get("expireTime"):
                return datetime.fromisoformat(at).astimezone(UTC)
        except (ValueError, OverflowError):
            raise bodies.refusal(400, "Request contains an invalid argument.") from None
        return None


def _bare(name: str) -> str:
    return name.rpartition("/")[2]


def _written(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")
