"""The whole line over a real socket, beside google-genai with asyncio.gather and a bare httpx loop, in one run.

    python tests/benchmarks/bench_line.py [calls]
    python tests/benchmarks/bench_line.py --slope [rounds]      CPU of one more call, and of a run of no call

The server is nginx with a constant Gemini reply (it must be installed), pinned to the last core; each client runs in a
process of its own, pinned to the first. Then 500 calls in flight against the served emulator at 1 s latency.
google-genai uses aiohttp for its connections where that is installed, as here. One more call costs the CPU of a process
of 15,000 calls less that of one of 1,000, by 14,000; both clients are measured in turn in each round.
"""

import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent))

PORT = 8791
FEW, MANY = 1_000, 15_000
REPLY = {
    "candidates": [
        {"content": {"parts": [{"text": "word " * 80}], "role": "model"}, "finishReason": "STOP", "index": 0}
    ],
    "usageMetadata": {"promptTokenCount": 100, "candidatesTokenCount": 80, "totalTokenCount": 180},
    "modelVersion": "gemini-3.5-flash-lite",
    "responseId": "r",
}
TEXT = "alpha report of the market system cost review " * 10
MODEL = "gemini-3.5-flash-lite"


@contextmanager
def nginx() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "nginx.conf"
        body = json.dumps(REPLY).replace("'", "\\'")
        config.write_text(
            f"daemon off; worker_processes 1; pid {folder}/pid; error_log /dev/null crit;"
            "events { worker_connections 4096; }"
            "http { access_log off; keepalive_requests 100000000; client_body_buffer_size 64k;"
            " default_type application/json;"
            f" client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;"
            f" uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;"
            f" server {{ listen 127.0.0.1:{PORT} backlog=4096; location / {{ return 200 '{body}'; }} }} }}"
        )
        server = subprocess.Popen(["nginx", "-c", str(config)], preexec_fn=lambda: pin(-1))
        try:
            time.sleep(0.5)
            yield f"http://127.0.0.1:{PORT}"
        finally:
            server.terminate()
            server.wait()


def pin(core: int) -> None:
    os.sched_setaffinity(0, {range(os.cpu_count() or 1)[core]})


def ours(url: str, calls: int, in_flight: int) -> tuple[int, float]:
    """`pipeline run` as a user starts it: plan, calls, journal, parts, export. Rows back, and seconds."""
    import anyio
    import polars as pl

    from pipeline.job import load
    from pipeline.run import prepare, run
    from pipeline.run.engine import Monitor

    os.environ |= {"GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": "AQ.bench"}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["XDG_STATE_HOME"] = folder
        pl.DataFrame({"text": [f"{number} {TEXT}" for number in range(calls)]}).write_parquet("in.parquet")
        Path("job.toml").write_text(
            '[input]\npath = "in.parquet"\n[prompt]\ntemplate = "{{ text }}"\n'
            f'[model]\nname = "{MODEL}"\nmax_output_tokens = 200\n'
            f"[limits]\nrpm = 0\ntpm = 0\nconcurrency = {in_flight}\n"
            '[output]\npath = "out.parquet"\n'
        )

        async def quiet(monitor: Monitor) -> None:
            await anyio.sleep_forever()

        prepared = prepare.prepare(load(Path("job.toml")), prepare.Options())
        confirm = lambda plan, continued, session: None  # noqa: E731
        ended = anyio.run(run.run, prepared, confirm, quiet, backend_options={"use_uvloop": True})
        return pl.read_parquet("out.parquet").filter(pl.col("status") == "ok").height, ended.summary.seconds


def google_genai(url: str, calls: int, in_flight: int) -> tuple[int, float]:
    """The official SDK, asyncio.gather behind a semaphore."""
    from google import genai
    from google.genai import types

    async def main() -> int:
        client = genai.Client(api_key="AQ.bench", http_options=types.HttpOptions(base_url=url))
        assert client._api_client._use_aiohttp()
        slots = asyncio.Semaphore(in_flight)

        async def one(number: int) -> bool:
            async with slots:
                reply = await client.aio.models.generate_content(
                    model=MODEL, contents=f"{number} {TEXT}", config=types.GenerateContentConfig(max_output_tokens=200)
                )
                return bool(reply.text)

        return sum(await asyncio.gather(*(one(number) for number in range(calls))))

    began = time.monotonic()
    return asyncio.run(main()), time.monotonic() - began


def bare_httpx(url: str, calls: int, in_flight: int) -> tuple[int, float]:
    """httpx.AsyncClient as it comes, its pool as large as the calls in flight."""
    import httpx

    async def main() -> int:
        limits = httpx.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
        slots = asyncio.Semaphore(in_flight)
        async with httpx.AsyncClient(limits=limits, timeout=120, headers={"x-goog-api-key": "AQ.bench"}) as client:

            async def one(number: int) -> bool:
                body = {"contents": [{"parts": [{"text": f"{number} {TEXT}"}]}]}
                async with slots:
                    reply = await client.post(f"{url}/v1beta/models/{MODEL}:generateContent", json=body)
                    return "candidates" in reply.json()

            return sum(await asyncio.gather(*(one(number) for number in range(calls))))

    began = time.monotonic()
    return asyncio.run(main()), time.monotonic() - began


CLIENTS = {"ours": ours, "google-genai": google_genai, "httpx": bare_httpx}


def measured(name: str, url: str, calls: int, in_flight: int) -> dict[str, float]:
    """Run one client in a process of its own and read what it measured."""
    command = [sys.executable, __file__, "--client", name, url, str(calls), str(in_flight)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    numbers: dict[str, float] = json.loads(told)
    return numbers


def client(name: str, url: str, calls: int, in_flight: int) -> None:
    pin(0)
    began, cpu = time.monotonic(), time.process_time()
    rows, seconds = CLIENTS[name](url, calls, in_flight)
    whole_s = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    spent = (time.process_time() - cpu) / calls * 1e6
    found = {"rows": rows, "per_s": calls / seconds, "whole_per_s": calls / whole_s, "cpu_us": spent, "peak_mb": peak}
    print(json.dumps(found))


def slopes(rounds: int) -> None:
    """CPU of one more call of ours and of google-genai, paired and in turn: median and range over the rounds."""
    found: dict[str, list[float]] = {name: [] for name in ("ours", "google-genai", "ratio", "no call")}
    with nginx() as url:
        for _ in range(rounds):
            for name in ("ours", "google-genai"):
                few, many = (measured(name, url, calls, 64)["cpu_us"] * calls for calls in (FEW, MANY))
                found[name].append((many - few) / (MANY - FEW))
                if name == "ours":
                    found["no call"].append((few - found[name][-1] * FEW) / 1e6)
            found["ratio"].append(found["google-genai"][-1] / found["ours"][-1])
    units = {"ratio": "times ours", "no call": "s CPU of ours before and after the calls"}
    for name, values in found.items():
        digits = 2 if name in units else 0
        spread = f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
        print(f"{name:14} {spread:22} {units.get(name, 'us CPU of one more call')}")


def main(calls: int) -> None:
    print("calls/s: from the first call to the written table; process: imports and plan included")
    print("client         in flight   calls rows back  calls/s  ratio  process  CPU us  peak MB")

    def row(name: str, url: str, calls: int, in_flight: int, base: float | None) -> float:
        found = measured(name, url, calls, in_flight)
        ratio = f"{found['per_s'] / base:.1f}" if base else "1.0"
        print(
            f"{name:14} {in_flight:9} {calls:7} {found['rows']:9} {found['per_s']:8.0f} {ratio:>6} "
            f"{found['whole_per_s']:8.0f} {found['cpu_us']:7.0f} {found['peak_mb']:8.0f}",
            flush=True,
        )
        return found["per_s"]

    with nginx() as url:
        base = row("google-genai", url, calls // 8, 64, None)
        row("httpx", url, calls // 10, 64, base)
        for in_flight in (64, 512):
            row("ours", url, calls, in_flight, base)
    from serving import served

    print("\nat 1 s latency, 500 in flight (ideal 500 calls/s)")
    pin(-1)  # the emulator inherits it
    with served(latency_s=1.0) as url:
        base = row("httpx", url, 2000, 500, None)
        row("ours", url, 15000, 500, base)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--client"]:
        client(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    elif sys.argv[1:2] == ["--slope"]:
        slopes(int(sys.argv[2]) if sys.argv[2:] else 5)
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 20_000)
