"""What the cache adds to a call: µs for a miss with its later write, and for a hit, in a file and on a Redis server.

    python tests/benchmarks/bench_cache.py [answers]

A body of 1 kB; Redis is measured where `redis-server` is installed, with 64 calls under way at once.
"""

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import anyio
import orjson

sys.path.insert(0, str(Path(__file__).parent.parent))
from asking import TARGET
from redis_server import redis_server

from pipeline.cache import AnswerCache
from pipeline.events import Event, Message
from pipeline.providers.answers import parse_reply
from pipeline.providers.stored import parse_stored
from pipeline.shelves import RedisShelf, Shelf, SqliteShelf

BATCH = 1000
WORDS = "An answer of some twenty words, as a short summary of one row would be, neither empty nor long. "


def raw(number: int) -> bytes:
    return orjson.dumps(
        {
            "candidates": [
                {
                    "content": {"parts": [{"text": f"{number} {os.urandom(200).hex()} {WORDS * 3}"}], "role": "model"},
                    "finishReason": "STOP",
                }
            ],
            "usageMetadata": {"promptTokenCount": 250, "candidatesTokenCount": 40, "totalTokenCount": 290},
            "modelVersion": "gemini-3.5-flash-lite",
        }
    )


async def ask(cache: AnswerCache, names: list[str], at_once: int) -> int:
    """Look all of them up; returns how many were found."""
    waiting, hits = iter(names), 0

    async def some() -> None:
        nonlocal hits
        for name in waiting:
            reply = await cache.get(name, TARGET)
            hits += reply is not None

    async with anyio.create_task_group() as tasks:
        for _ in range(at_once):
            tasks.start_soon(some)
    return hits


async def measure(name: str, shelf: Shelf, answers: int, at_once: int) -> None:
    def heard(event: Event) -> None:
        raise SystemExit(event.message if isinstance(event, Message) else event.kind)

    async with AnswerCache(shelf, parse_stored, heard) as cache:
        missing = putting = writing = hitting = 0.0
        names = [f"{number:032x}" for number in range(answers)]
        for start in range(0, answers, BATCH):
            batch = names[start : start + BATCH]
            replies = [parse_reply(raw(start + number)) for number in range(len(batch))]
            began = time.perf_counter()
            assert await ask(cache, batch, at_once) == 0
            missing += (now := time.perf_counter()) - began
            for fingerprint, reply in zip(batch, replies, strict=True):
                cache.put(fingerprint, TARGET, reply)
            putting += (then := time.perf_counter()) - now
            await cache.write()
            writing += time.perf_counter() - then
        began = time.perf_counter()
        assert await ask(cache, names, at_once) == answers
        hitting = time.perf_counter() - began
    miss, put, write, hit = (seconds / answers * 1e6 for seconds in (missing, putting, writing, hitting))
    print(f"{name:<7} miss {miss:6.1f} µs + put {put:4.1f} µs + write, in a thread, {write:5.1f} µs; hit {hit:6.1f} µs")


def main(answers: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "answers.sqlite"
        anyio.run(measure, "sqlite", SqliteShelf(path, 30, 100_000), answers, 1)
        print(f"        {path.stat().st_size / answers:,.0f} bytes an answer")
        if shutil.which("redis-server"):
            with redis_server(Path(directory)) as (url, _):
                anyio.run(measure, "redis", RedisShelf(url, None, 30), min(answers, 20_000), 64)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
