"""The log of a run, whatever is in it."""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import orjson
import pytest
from commands import UNLIMITED, Ran, small_job
from hypothesis import given
from hypothesis import strategies as st

from pipeline.report.events import Ended, Started, parse_events, read_events

LINES = [
    {"event": "plan", "at_s": 1.0, "rows": 3, "pilot": False, "steps": {"answer": [3, 40, 9, 0.01]}, "seconds": 2.0}
    | {"based_on": "no answers yet"},
    {"event": "start", "rows": 3, "pid": 7},
    {"event": "progress", "seconds": 10.0, "identical": 1, "cached": 0, "saved_usd": 0.25},
    {"event": "end", "status": "finished", "reason": "", "seconds": 12.5, "saved_usd": 0.5},
]
WHOLE = b"".join(orjson.dumps(line) + b"\n" for line in LINES)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


def test_the_events_of_a_whole_log() -> None:
    _, start, _, end = parse_events(WHOLE.splitlines())
    assert isinstance(start, Started) and start.rows == 3
    assert isinstance(end, Ended) and (end.status, end.seconds, end.saved_usd) == ("finished", 12.5, Decimal("0.5"))


@pytest.mark.case("D10")
@given(place=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255))
def test_a_changed_byte_costs_two_lines_at_most(place: int, byte: int) -> None:
    """Two, where it is the end of a line."""
    damaged = WHOLE[:place] + bytes([byte]) + WHOLE[place + 1 :]
    assert len(list(parse_events(damaged.splitlines()))) >= 2


@pytest.mark.case("D10")
@given(
    number=st.integers(0, 3),
    name=st.sampled_from(sorted({name for line in LINES for name in line})),
    value=JSON,
)
def test_a_field_of_any_type_is_passed_over_or_read(number: int, name: str, value: object) -> None:
    lines = [dict(line) for line in LINES]
    lines[number][name] = value
    try:
        written = [orjson.dumps(line) for line in lines]
    except TypeError:  # a number or a character that no JSON of ours holds
        return
    assert len(list(parse_events(written))) >= 3


STRANGE = {
    "invalid UTF-8": b'\xff\xfe{"event":"start"}',
    "no object": b'[1,2]\n3\nnull\n"event"',
    "no event": b'{"rows":3}',
    "an event that is no name": b'{"event":{"a":[]}}',
    "missing keys": b'{"event":"start"}\n{"event":"end"}\n{"event":"plan"}',
    "wrong types": b'{"event":"start","rows":"many"}\n{"event":"end","status":7,"seconds":"x"}',
    "numbers beyond measure": b'{"event":"start","rows":1e400}\n{"event":"start","rows":-1}\n'
    b'{"event":"progress","seconds":NaN}\n{"event":"end","status":"finished","saved_usd":"1E+999999"}',
    "deep": b'{"event":' + b"[" * 5000 + b"]" * 5000 + b"}",
    "huge": b'{"event":"start","rows":3,"x":"' + b"y" * 3_000_000 + b'"}',
    "escape sequences": b'{"event":"end","status":"\\u001b[31mfinished"}',
    "nothing but zeros": b"\0" * 100_000,
}


@pytest.mark.case("D10")
@pytest.mark.parametrize("strange", STRANGE.values(), ids=STRANGE)
def test_a_strange_line_stops_no_command(here: Path, cli: Callable[..., Ran], strange: bytes) -> None:
    job = small_job(here, UNLIMITED)
    first = cli("run", job, "--offline", "--json").json
    log = here / "runs/small-offline/run.log"
    log.write_bytes(strange + b"\n" + log.read_bytes() + strange)
    for command in (["report", "--json"], ["runs", "--json"], ["run", job, "--offline", "--json"]):
        ran = cli(*command)
        assert ran.code == 0, ran.err
        told = ran.json[0] if command[0] == "runs" else ran.json
        assert (told["rows"], told["ok"], told["status"]) == (first["rows"], 6, "finished")


@pytest.mark.case("D10")
def test_a_log_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    assert read_events(tmp_path) == read_events(tmp_path / "run.log") == []


@pytest.mark.case("D10")
def test_a_changed_byte_in_the_manifest_is_a_refusal_or_nothing(here: Path, cli: Callable[..., Ran]) -> None:
    job = small_job(here, UNLIMITED)
    assert cli("run", job, "--offline").code == 0
    manifest = here / "runs/small-offline/manifest.json"
    whole = manifest.read_bytes()
    for place in range(0, len(whole), 11):
        manifest.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert cli("report").code in (0, 2)
        assert cli("runs").code == 0
    absurd: list[object] = [None, 7, [], {}, "x"]
    for name in orjson.loads(whole):
        for value in absurd:
            manifest.write_bytes(orjson.dumps({**orjson.loads(whole), name: value}))
            for command in (["report"], ["runs"], ["estimate", job, "--offline"]):
                assert cli(*command).code in (0, 2), (name, value)
