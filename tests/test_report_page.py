"""What the page of a run knows: sums over time, limits and refusals, and rows that fit into a small file."""

import gzip
import os
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import accumulate
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

import orjson
import polars as pl
import pytest
from asking import MODEL
from stores import opened, paid, prompt, result, sealed

from pipeline.errors import InputChanged
from pipeline.events import LimitSet, Outage, SessionEnded
from pipeline.report.events import Event, parse_events
from pipeline.report.page import rows as page_rows
from pipeline.report.page.data import gather
from pipeline.report.page.rows import CUT, Rows, packed
from pipeline.report.page.timeline import COLUMNS, Calls, over_time
from pipeline.report.reading import Answers
from pipeline.store import parts, seals

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)


def log(*lines: tuple[float, dict[str, Any]]) -> list[Event]:
    """Events, each so many seconds after noon."""
    written = [{"at": f"{NOON + timedelta(seconds=at):%Y-%m-%dT%H:%M:%SZ}", **line} for at, line in lines]
    return list(parse_events(map(orjson.dumps, written)))


def calls(*seconds: float, **fields: Any) -> Calls:
    """Calls that came back so many seconds after noon."""
    every = {
        "generation": 0,
        "paid": True,
        "step": "answer",
        "chunk": 0,
        "lane": "standard",
        "status": "ok",
        "latency_s": 1.0,
        "input_tokens": 100,
        "tool_tokens": 0,
        "output_tokens": 10,
        "thinking_tokens": 0,
        "cost_usd": 0.5,
        **fields,
    }
    made = [{"finished_at": NOON + timedelta(seconds=at), **every} for at in seconds]
    schema = {name: kind for name, kind in parts.CALLS_SCHEMA.items() if name in COLUMNS}
    frame = pl.DataFrame(made, schema_overrides={**schema, "cost_usd": pl.Float64})
    return lambda columns: iter([frame.select(columns)])


def together(*several: Calls) -> Calls:
    return lambda columns: (frame for one in several for frame in one(columns))


def value_at(series: dict[str, Any], name: str, seconds: float) -> Any:
    """The value of the last point that is not later than so many seconds after noon."""
    wanted = NOON.timestamp() + seconds
    return series[name][max(n for n, at in enumerate(series["at"]) if at <= wanted)]


def test_a_pace_is_what_came_back_in_the_minute_before() -> None:
    series = over_time(calls(*range(120), 300), [])
    assert series
    assert (value_at(series, "calls", 30), value_at(series, "calls", 120)) == (30, 60)
    assert (value_at(series, "calls", 200), value_at(series, "live_input", 301)) == (0, 100)
    assert (value_at(series, "usd", 301), value_at(series, "input", 301)) == (60.5, 12_100)


def test_a_run_that_slept_for_days_is_drawn_as_finely_as_one_that_did_not() -> None:
    straight, slept = over_time(calls(*range(60)), []), over_time(calls(*range(30), *range(300_000, 300_030)), [])
    assert straight and slept and straight["width_s"] == slept["width_s"] == 1
    assert len(slept["at"]) < 200


def test_the_quota_is_drawn_as_it_was_learned_and_over_all_targets() -> None:
    limit = {"event": "limit", "meter": "requests"}
    events = log(
        (0, {**limit, "per_minute": 100, "origin": "configured", "target": "a"}),
        (0, {**limit, "per_minute": 60, "origin": "assumed", "target": "b"}),
        (0, {**limit, "meter": "tokens", "per_minute": 9_000, "origin": "configured", "target": "a"}),
        (50, {**limit, "per_minute": 40, "origin": "measured", "target": "b"}),
    )
    series = over_time(calls(*range(100)), events)
    assert series
    assert (value_at(series, "rpm", 20), value_at(series, "rpm", 90)) == (160, 140)
    assert value_at(series, "tpm", 90) == 9_000


def test_refusals_and_failures_stand_apart_and_where_they_happened() -> None:
    start, sign = {"event": "start", "rows": 9, "pid": 1}, {"event": "progress", "seconds": 10.0}
    end = {"event": "end", "status": "finished", "reason": "", "seconds": 30.0}
    events = log(
        (0, start),
        (10, {**sign, "rate_limited": 3}),
        (20, {**sign, "rate_limited": 3, "failed": {"server": 2}}),
        (30, {**end, "rate_limited": 4, "failed": {"server": 2, "timeout": 1}}),
        (600, start),
        (610, {**sign, "rate_limited": 1}),
    )
    series = over_time(calls(5, 25), events)
    assert series
    told = {what: [n for n in counts if n] for what, counts in series["troubles"].items()}
    assert told == {"quota": [3, 1, 1], "server": [2], "timeout": [1]}
    assert series["troubles"]["server"][series["at"].index(NOON.timestamp() + 21)] == 2


def test_what_batches_answered_is_in_the_sums_and_in_no_pace() -> None:
    series = over_time(together(calls(1, 2), calls(*[60] * 500, lane="batch")), [])
    assert series
    assert max(series["calls"]) == 2 and series["usd"][-1] == 251.0


def test_what_an_earlier_generation_bought_is_in_no_chart() -> None:
    assert over_time(calls(1, 2, generation=1), []) is None


# --- rows -------------------------------------------------------------------------------------------------------------


def a_run(directory: Path, answers: list[str], *, chunks: int = 1) -> Answers:
    with opened(directory) as store:
        for row, text in enumerate(answers):
            for chunk in range(chunks if chunks > 1 else 0):
                piece = prompt(row, f"{row} {chunk}", step="map", chunk=chunk, chunks=chunks)
                store.append_call(piece, MODEL, paid(f"piece {chunk} of {row}"))
            store.append_call(prompt(row), MODEL, paid(text))
            store.append_result(result(row, response=text, calls=chunks + (chunks > 1), chunks=chunks))
    return Answers(directory)


def blocks(rows: Rows, kind: str) -> dict[str, list[Any]]:
    whole: dict[str, list[Any]] = {}
    for line in gzip.decompress(rows.content).splitlines():
        for name, column in orjson.loads(line).get(kind, {}).items():
            values = [column["of"][at] for at in column["at"]] if isinstance(column, dict) else column
            values = list(accumulate(values)) if name == "row" else values
            whole.setdefault(name, []).extend(values)
    return whole


def asked(texts: list[str]) -> Callable[[Callable[[int], bool], int], Iterator[tuple[int, str]]]:
    return lambda wanted, chars: ((row, text[: chars + 1]) for row, text in enumerate(texts) if wanted(row))


def test_a_small_run_is_there_whole(tmp_path: Path) -> None:
    rows = packed(a_run(tmp_path, ["one", "two 你好"], chunks=3), asked(["first", "second"]))
    found = blocks(rows, "rows")
    assert (found["row"], found["answer"], found["cost_usd"]) == ([0, 1], ["one", "two 你好"], [0.01, 0.01])
    assert blocks(rows, "inputs")["input"] == ["first", "second"]
    assert blocks(rows, "calls")["answer"].count("piece 2 of 1") == 1
    assert rows.told["rows"] == rows.told["of"] == 2 and not any(rows.told["cut"].values())


def test_texts_are_cut_until_all_rows_fit_and_that_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_rows, "BYTES", 60_000)
    rng = Random(0)
    texts = ["".join(rng.choices("abcdefghijklmnop ", k=900)) for _ in range(600)]
    rows = packed(a_run(tmp_path, texts), asked(texts))
    found = blocks(rows, "rows")
    assert 20_000 < len(rows.content) <= 60_000
    assert found["row"] == list(range(600))
    chars = rows.told["chars"]
    assert found["answer"][7] == texts[7][:chars] + CUT and blocks(rows, "inputs")["input"][7] == texts[7][:chars] + CUT
    assert rows.told["cut"] == {"rows": 600, "inputs": 600}


def test_texts_that_pack_into_nothing_are_cut_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_rows, "PLAIN_BYTES", 1_000_000)
    rows = packed(a_run(tmp_path, ["always the same " * 500] * 300), None)
    plain = len(gzip.decompress(rows.content))
    assert 500_000 < plain <= 1_000_000 and rows.told["cut"] == {"rows": 300}


def test_of_many_rows_some_are_shown_and_all_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_rows, "ROWS", 10)
    with opened(tmp_path) as store:
        for row in range(40):
            store.append_result(result(row, *(("error", "server") if row in (13, 27) else ())))
    rows = packed(Answers(tmp_path), None)
    assert blocks(rows, "rows")["row"] == [0, 4, 8, 12, 13, 16, 20, 24, 27, 28, 32, 36]
    assert (rows.told["rows"], rows.told["of"], rows.told["failed_left_out"]) == (12, 40, 0)


def test_an_outcome_that_was_redone_is_there_once(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.append_result(result(0, "error", "server"))
        store.append_result(result(1))
    with opened(tmp_path) as store:
        store.append_result(result(0))
    found = blocks(packed(Answers(tmp_path), None), "rows")
    assert sorted(zip(found["row"], found["answer"], strict=True)) == [(0, "answer 0"), (1, "answer 1")]


def test_inputs_that_are_gone_leave_the_rows(tmp_path: Path) -> None:
    def gone(wanted: Callable[[int], bool], chars: int) -> Iterator[tuple[int, str]]:
        raise InputChanged("notes.csv is not what it was when this was asked\nNothing else.")
        yield

    rows = packed(a_run(tmp_path, ["one"]), gone)
    assert rows.told["no_inputs"] == "notes.csv is not what it was when this was asked"
    assert blocks(rows, "rows")["answer"] == ["one"] and not rows.told["has_inputs"]


def test_a_run_without_an_answer_has_no_rows(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    rows = packed(Answers(tmp_path), asked(["first"]))
    assert blocks(rows, "rows") == {} and rows.told["rows"] == 0


def test_without_text_nothing_names_a_path_or_repeats_a_message(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.append_result(result(0, "error", "server"))
        store.log(Outage("the server of Ann is down"))
        store.log(LimitSet("requests", 60, "measured", target="Ann's project"))
        store.log(SessionEnded(1.0, 0, 0, Decimal(0), 0, 0, Decimal(0), 0, 0, "stopped", "the disk of Ann is full"))
    whole, without = (orjson.dumps(gather(tmp_path, Answers(tmp_path), text=text)).decode() for text in (True, False))
    for word in ("Ann", "jobs/notes.toml", "results/notes.csv", "key 0"):
        assert word in whole and word not in without
    assert '"outage"' in without and "60 requests a minute" in without


# --- a large run ------------------------------------------------------------------------------------------------------

LARGE = """
import random, sys
from pathlib import Path
from pipeline.report.page import page

def inputs(wanted, chars):
    rng = random.Random(1)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 9))) for _ in range(3_000)]
    return ((row, " ".join(rng.choices(words, k=150))[: chars + 1]) for row in range(100_000) if wanted(row))

Path("run.html").write_text(page(Path(sys.argv[1]), inputs=inputs))
"""


@pytest.mark.long
def test_a_hundred_thousand_rows_make_a_small_page_soon_and_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below 20 s, 10 MB and 500 MB, of answers and inputs of 1 kB in words of a language that nobody speaks."""
    monkeypatch.chdir(tmp_path)
    rng, rows = Random(0), 4_000
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(1, 9))) for _ in range(3_000)]
    with opened(tmp_path / "run") as store:
        store.append_call(prompt(0), MODEL, paid("an answer"))
        store.append_result(result(0))
    [call], [outcome] = (sealed(tmp_path / "run", kind).to_dicts() for kind in ("calls", "results"))
    for number in range(25):
        numbers = range(number * rows, (number + 1) * rows)
        texts = [" ".join(rng.choices(words, k=150)) for _ in numbers]
        for kind, one, schema in (
            ("calls", call | {"text": None}, parts.CALLS_SCHEMA),
            ("results", outcome, parts.RESULTS_SCHEMA),
        ):
            own = [pl.Series("row", numbers), pl.Series("key", [f"document {row}" for row in numbers])]
            frame = pl.DataFrame([one], schema=schema).select(pl.all().repeat_by(rows).explode()).with_columns(own)
            if kind == "results":
                frame = frame.with_columns(pl.Series("response", texts))
            seals.record(tmp_path / "run", [parts.write_part(frame, tmp_path / "run" / kind, number + 2)])
    began = monotonic()
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", LARGE, "run"], os.environ)
    _, code, used = os.wait4(pid, 0)
    assert code == 0 and monotonic() - began < 20
    assert used.ru_maxrss < 500_000 and 5_000_000 < Path("run.html").stat().st_size < 10_000_000
