"""What an emulator can be told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pipeline.emulator.batch_faults import Chance
from pipeline.emulator.counting import Tokenizer
from pipeline.emulator.faults import NO_FAULTS, Faults

Algorithm = Literal["fixed", "log", "counter", "bucket"]


@dataclass(frozen=True, slots=True)
class EmulatorOptions:
    """One emulator's behaviour; the default has no quotas, no delays and no faults."""

    rpm: int | None = None  # requests per minute, per key and model; None: unlimited, 0: not offered
    tpm: int | None = None  # input tokens per minute
    rpd: int | None = None  # requests per day, from midnight Pacific
    algorithm: Algorithm = "fixed"  # fixed window, sliding log, sliding-window counter, token bucket
    offset_s: float = 0.0  # the server's clock minus the given clock: moves the minute's boundary
    count_rejected: bool = False  # a 429 uses up one request per minute too
    count_failed: bool = True  # a request that ends in a fault uses up quota, as 400, 500 and 503 do
    tier: Literal[0, 1, 2, 3] = 1  # 0: free; names the quotas in a 429
    quota_details: Literal["full", "opaque"] = "full"  # opaque: a 429 that names neither quota nor delay
    day_delay: Literal["short", "true"] = "short"  # a day quota's RetryInfo: the minute's rest, as seen, or the day's
    latency_s: float = 0.0
    latency_jitter_s: float = 0.0  # up to this much is added
    part_tokens: int | None = (
        None  # of one answer, after which it goes on in another request; None: as the model has it
    )
    pause_s: float = 0.0  # between two pieces of a streamed answer
    flex_share: float = 1.0  # of requests in flex that are served; the others are turned away
    flex_wait_s: float = 0.0  # that a request in flex takes longer, served or not: up to twice as much
    faults: Faults = NO_FAULTS
    seed: int = 0  # of faults, latency and response ids
    keys: frozenset[str] = frozenset()  # empty: any key that does not start with "invalid"
    projects: Mapping[str, str] = field(default_factory=dict)  # of keys; each other key has one of its own
    key_ends_after: int | None = None  # requests for answers with one key, after which it has expired
    token_s: float = 3600.0  # life of an access token that /token gives
    upload_faults: tuple[Literal["503", "cut", "no_status"], ...] = ()  # of the first parts that are uploaded
    processing_s: float = 0.0  # of an uploaded file, before it can be used
    batch: bool = False  # batches are served
    batch_pending_s: float = 1.0  # median of what a batch waits, in seconds of the service
    batch_run_s: float = 2.0  # median of what it then runs
    batch_spread: float = 2.0  # of both, which are lognormal: the factor of a sigma; 1: all alike
    time_scale: float = 1.0  # seconds of the service in one of the clock: of a batch's waits, and the 48 h of files
    batch_tokens: int | None = None  # enqueued at most in the active batches of a key and model; None: unlimited
    batch_most: int = 100  # batches of a key under way; those beyond wait
    batch_faults: tuple[Chance, ...] = ()
    storage_bytes: int = 20 * 2**30  # of all files of a key
    models: tuple[str, ...] = ()  # served and listed beside the catalog's
    any_model: bool = False  # serve names the catalog does not know
    routes: Mapping[str, str] = field(default_factory=dict)  # requested model → the model that serves it
    model_version: str | None = "emulator"  # what answers call their model; None: the model that served
    model_stage: str = ""  # what answers say of the model's life, as DEPRECATED; empty: nothing
    tokenizer: Tokenizer = "coarse"
    thinking_tokens: int = 0  # per answer, unless the request sets a thinking budget of 0
    track_prompts: int = 1_000_000  # distinct prompts whose answers are counted, near 100 bytes each
    marked: bool = True  # every response says that it is emulated; not so where a test plays the service itself
    log_size: int = 0  # latest requests kept in `Emulator.stats.log`
