"""The explicit caches of a run: made before its first call, kept up meanwhile, ended after it, adopted after a kill.

A cache is kept for `TTL_S` and prolonged long before that is over, so that one whose run was killed ends soon. Its name
stands in the run directory, with until when it is paid. What a cache costs is a line of its own among the calls, of the
step `cache` and of no row: for making it, and for each stretch of time that it was there.
"""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import anyio
import orjson

from pipeline.budget.cashier import ESTIMATE_MARGIN, Bill, Cashier
from pipeline.events import Notify, PrefixCached
from pipeline.job import Job
from pipeline.models import answering, assumed
from pipeline.prefixes import Prefix, prefix_of
from pipeline.prices import storage_usd
from pipeline.prompts import Params, Prompt, Text, Turn
from pipeline.providers.caches import Cached, Held
from pipeline.providers.connection import Connected
from pipeline.providers.gemini import GeminiConnection
from pipeline.records import Failure, Reply, Usage
from pipeline.run.services import Services
from pipeline.store.run import RunStore
from pipeline.targets import Target

TTL_S = 600
LOOK_S = 30.0
"""Between looks whether a cache is still there, and long enough."""
AGAIN_S = 60.0
"""How long a cache that could not be made is not asked for again."""
OPEN_S = 30.0
"""Longest time that the first call waits for caches: what is not there by then is looked for while the run goes on."""
MOST_MADE = 5
"""Caches that are made for one target in a session: whoever loses so many would lose the next, and each costs."""
END_S = 15.0
"""Longest time that is spent on ending caches: what is left ends by itself."""
NOTES = "caches.json"


@dataclass(slots=True)
class _Note:
    """One cache in the run directory."""

    target: str  # `Target.access`
    digest: str
    name: str
    tokens: int
    paid_until: float  # seconds since the epoch
    ends_at: float


@dataclass(slots=True)
class _Kept:
    target: Target
    connection: GeminiConnection
    held: Held
    note: _Note | None = None
    again_at: float = 0.0
    made: int = 0


class CacheKeeper:
    """Keeps one cache for each target while a run goes on. A cache that is refused stops no run: prompts go whole."""

    def __init__(
        self,
        store: RunStore,
        cashier: Cashier,
        targets: Iterable[tuple[Target, GeminiConnection]],
        prefix: Prefix,
        params: Params,
        paid: Callable[[Decimal], None],
        heard: Notify,
        wall: Callable[[], float] = time.time,
        keeps: bool = True,
    ) -> None:
        """`paid` is told of each sum, `heard` of what a person may want to know. Not `keeps`: what an earlier session
        left is ended, and nothing made."""
        self._keeps = keeps
        self._store, self._cashier, self._paid, self._heard, self._wall = store, cashier, paid, heard, wall
        # What the service is shown of a prompt is what all begin with; the last turn is left out.
        turns = (*prefix.turns, Turn("user", (Text("-"),)))
        self._shown = Prompt(-1, "", "cache", turns, replace(params, max_output_tokens=1), prefix.tokens)
        self._kept = [_Kept(target, connection, Held(prefix)) for target, connection in targets]
        self._told: set[str] = set()

    @property
    def _path(self) -> Path:
        return self._store.directory / NOTES

    async def open(self) -> None:
        """Take on what an earlier session left, and make what is missing."""
        notes = _read(self._path)
        if not self._keeps:
            for kept in self._kept:
                kept.note = next((note for note in notes if note.target == kept.target.access), None)
            await self.close()
            return
        with anyio.move_on_after(OPEN_S):
            await self._open(notes)

    async def _open(self, notes: list[_Note]) -> None:
        for kept in self._kept:
            kept.connection.caches[kept.target.model] = kept.held
            digest = kept.held.prefix.digest(kept.target.model)
            for note in notes:
                if (note.target, note.digest) == (kept.target.access, digest) and note.name:
                    await self._adopt(kept, note)
            if not kept.held.name:
                await self._make(kept)

    async def keep(self) -> None:
        """Look after them until cancelled."""
        while self._keeps:
            await anyio.sleep(LOOK_S)
            for kept in self._kept:
                if not kept.held.name:
                    await self._make(kept)
                elif kept.note and kept.note.ends_at - self._wall() < TTL_S / 2 and self._may_prolong(kept):
                    found = await kept.connection.prolong_cache(kept.held.name, TTL_S)
                    self._take(kept, found)

    async def close(self) -> None:
        """End them, and count what they cost to the end."""
        with anyio.move_on_after(END_S, shield=True):
            for kept in self._kept:
                if kept.note is None:
                    continue
                failure = await kept.connection.end_cache(kept.note.name)
                self._charge_time(kept)
                self._cashier.beside.give_back(self._name(kept))
                if failure is None or failure.http_status in (403, 404):
                    kept.note = None
                kept.connection.caches.pop(kept.target.model, None)
        self._write()

    async def _adopt(self, kept: _Kept, note: _Note) -> None:
        found = await kept.connection.find_cache(note.name)
        kept.note = note
        if isinstance(found, Failure):
            self._charge_time(kept)  # it was there until it ended
            kept.note = None
            return
        self._take(kept, found)
        if self._may_prolong(kept):
            self._take(kept, await kept.connection.prolong_cache(note.name, TTL_S))

    async def _make(self, kept: _Kept) -> None:
        """Make a cache, where the last try is long enough ago."""
        now = self._wall()
        if now < kept.again_at:
            return
        kept.again_at = now + AGAIN_S
        if kept.note is not None:  # it is gone, or of no use: it was there until now at most
            await kept.connection.end_cache(kept.note.name)
            self._charge_time(kept)
            kept.note = None
        if kept.made == MOST_MADE:
            self._tell(f"{MOST_MADE} caches at {kept.target.label} were lost: no more are made")
            return
        target = kept.target
        at, most = datetime.fromtimestamp(now, UTC), math.ceil(self._shown.input_tokens_est * ESTIMATE_MARGIN)
        making = target.usd(Usage(most), target.model, at) or Decimal(0)
        if not self._cashier.beside.reserve(self._name(kept), making + self._stored_usd(kept, most)):
            self._tell(f"what all prompts begin with is not cached at {target.label}: that could pass a cap")
            return
        self._store.append_sent(self._shown, target.model)  # a kill before it is noted counts it as a lost request
        try:
            made = await kept.connection.create_cache(kept.held.prefix, self._shown, target.model, TTL_S)
        except BaseException:
            self._charge(kept, Decimal(0), "perhaps made: what came of it is not known", making)
            self._cashier.beside.give_back(self._name(kept))
            raise
        if isinstance(made, Failure):
            self._store.append_ended(self._shown, target.model)
            self._cashier.beside.give_back(self._name(kept))
            self._tell(f"what all prompts begin with is not cached at {target.label}: {made.message}")
            return
        digest = kept.held.prefix.digest(target.model)
        kept.made += 1
        kept.note = _Note(target.access, digest, made.name, made.tokens, now, made.ends_at)
        self._take(kept, made)
        usage = Usage(made.tokens)
        self._charge(kept, target.usd(usage, target.model, at), "made")
        self._store.append_ended(self._shown, target.model)
        self._cashier.beside.reserve(self._name(kept), self._stored_usd(kept, made.tokens))

    def _may_prolong(self, kept: _Kept) -> bool:
        """Whether the caps have room for its next time; what the last one cost is counted."""
        assert kept.note is not None
        self._charge_time(kept)
        if self._cashier.beside.reserve(self._name(kept), self._stored_usd(kept, kept.note.tokens)):
            return True
        self._tell(f"the cache at {kept.target.label} is not prolonged: that could pass a cap")
        return False

    @staticmethod
    def _name(kept: _Kept) -> str:
        return f"cache {kept.target.access} {kept.target.model}"

    def _stored_usd(self, kept: _Kept, tokens: int) -> Decimal:
        """What a cache costs for twice as long as it lasts: until it is prolonged, and after that."""
        target, day = kept.target, datetime.fromtimestamp(self._wall(), UTC).date()
        return storage_usd(tokens, 2 * TTL_S / 3600, target.model, day, target.rates) * target.price_factor

    def _take(self, kept: _Kept, found: Cached | Failure) -> None:
        """What the service says of a cache; one that it does not know is made anew at the next look."""
        if isinstance(found, Failure):
            if found.http_status in (403, 404):
                kept.held.name = ""
            return
        assert kept.note is not None
        kept.held.name = found.name
        kept.note.ends_at, kept.note.tokens = found.ends_at, found.tokens or kept.note.tokens
        self._charge_time(kept)
        self._write()

    def _charge_time(self, kept: _Kept) -> None:
        """Count the time since a cache was paid last, until now or its end."""
        note, target, now = kept.note, kept.target, self._wall()
        if note is None:
            return
        hours = max(0.0, min(now, note.ends_at) - note.paid_until) / 3600
        note.paid_until = max(note.paid_until, min(now, note.ends_at))
        day = datetime.fromtimestamp(now, UTC).date()
        usd = storage_usd(note.tokens, hours, target.model, day, target.rates) * target.price_factor
        self._charge(kept, usd, f"kept for {hours * 60:.1f} min")
        self._write()

    def _charge(self, kept: _Kept, usd: Decimal | None, what: str, at_most_usd: Decimal = Decimal(0)) -> None:
        """Count what a cache cost, and so much more that it may have cost."""
        if not usd and not at_most_usd:
            return
        usd, target = usd or Decimal(0), kept.target
        self._cashier.charge(Bill(usd, at_most_usd, None), target.account)
        reply = Reply(
            "",
            "ok",
            error=f"a cache of what prompts begin with was {what}",
            model=target.model,
            endpoint=target.endpoint,
            finished_at=self._wall(),
            attempts=0,
            cost_usd=usd,
            at_most_usd=at_most_usd,
            target=target.name,
        )
        self._store.append_call(self._shown, target.model, reply, answered=False)
        self._paid(usd)

    def _write(self) -> None:
        notes = [asdict(kept.note) for kept in self._kept if kept.note is not None]
        with suppress(OSError):  # without it a killed run's cache ends by itself
            if notes:
                self._path.write_bytes(orjson.dumps(notes))
                self._path.chmod(0o600)
            else:
                self._path.unlink(missing_ok=True)

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._heard(PrefixCached(text))


def keeper_of(
    job: Job,
    services: Services,
    targets: Iterable[Target],
    store: RunStore,
    cashier: Cashier,
    paid: Callable[[Decimal], None],
    heard: Notify,
    keeps: bool,
) -> CacheKeeper | None:
    """Who keeps what all prompts of a job begin with, at each target whose model has explicit caches.

    Not `keeps`: None, but where an earlier session left caches.
    """
    if not keeps and not (store.directory / NOTES).exists():
        return None
    today = datetime.now(UTC).date()
    connected = [
        (target, connection)
        for target in targets
        if isinstance(speaker := services.speaker(target), Connected)
        and isinstance(connection := speaker.open(target), GeminiConnection)
        and assumed(answering(target.model, today)).explicit_caches
    ]
    prefix = prefix_of(job.params, job.examples)
    return CacheKeeper(store, cashier, connected, prefix, job.params, paid, heard, keeps=keeps)


def _read(path: Path) -> list[_Note]:
    try:
        return [_Note(**note) for note in orjson.loads(path.read_bytes())]
    except (OSError, ValueError, TypeError):
        return []
