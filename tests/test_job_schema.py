"""The JSON Schema of a job file takes what the loader takes, and refuses what it refuses for its structure."""

import copy
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from commands import Ran
from hypothesis import event, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from test_docs import ALL, blocks

from jobs import CHUNKED, PLAIN
from pipeline.job.schema import job_schema, schema_text
from pipeline.sections import JobFile

SCHEMA = job_schema()
VALIDATOR = jsonschema_rs.validator_for(SCHEMA)
Job = dict[str, Any]

JOBS = [tomllib.loads(path.read_text("utf-8")) for path in Path(__file__).parent.parent.glob("jobs/*.toml")]
ON_PAGES = [tomllib.loads(block) for text in ALL.values() for block in blocks(text, "toml")]


def settings_of(form: Job, place: tuple[str, ...] = ()) -> dict[tuple[str, ...], Job]:
    """Every setting and table of the schema by its place, those of a list of tables without a number."""
    found: dict[tuple[str, ...], Job] = {}
    for key, each in form.get("items", form).get("properties", {}).items():
        found |= {(*place, key): each, **settings_of(each, (*place, key))}
    return found


SETTINGS = settings_of(SCHEMA)
LEAVES = {place: form for place, form in SETTINGS.items() if not settings_of(form)}


def structural(job: Job) -> list[str] | None:
    """Why the loader refuses its structure; None where it takes the job; nothing where a rule of its own is broken."""
    try:
        JobFile.model_validate(job)
    except ValidationError as error:
        return [each["type"] for each in error.errors() if each["type"] != "value_error"]
    return None


@pytest.mark.parametrize("job", JOBS + ON_PAGES)
def test_every_job_of_ours_is_taken(job: Job) -> None:
    VALIDATOR.validate(job)


NUMBERS = [-(2**31) - 1, -2, -1, 0, 1, 2, 63, 64, 127, 128, 499, 500, 501, 1000, 1001, 75, 76, 2**31 - 1, 2**31, 2**62]
FRACTIONS = [
    -2.5,
    -0.5,
    0.25,
    0.5,
    1.5,
    75.5,
    99.5,
    100.5,
    1e9 + 0.5,
]  # 1.0 is whole to a schema, and not to the loader
TEXTS = ["", "x", "low", "auto", "batch", "input", "07:00"]
SIMPLE = [*NUMBERS, *FRACTIONS, *TEXTS, True, False]
VALUES: list[Any] = [*SIMPLE, [], {}, ["x"], [1], {"a": 1}, {"a": "x"}, [{}], [{"name": "x"}], ["x"] * 300]
FULL: Job = {
    **CHUNKED,
    "refine": {"template": "{{ summary }} {{ text }}"},
    "redact": {"kinds": ["email"]},
    "pack": {},
    "cache": {},
    "check": [{"holds": "true"}],
    "target": [{"name": "a"}, {"name": "b", "limits": {"rpm": 1}, "prices": {"input": 1, "output": 1}}],
    "route": [{"targets": ["a", "b"]}],
    "tools": {"function": [{"name": "f"}]},
    "prompt": {"template": "{{ text }}", "examples": [{"input": "i", "output": "o"}]},
    "model": {"name": "m", "prices": {"input": 1, "output": 1}},
}
"""Every section, whatever rules that breaks."""


def put(job: Job, place: tuple[str, ...], value: Any) -> None:
    """Set it where all above it is a table, or the last of a list of some."""
    at: Any = job
    for key in place[:-1]:
        at = at.setdefault(key, {})
        at = at[-1] if isinstance(at, list) and at else at
        if not isinstance(at, dict):
            return
    at[place[-1]] = copy.deepcopy(value)


def compare(job: Job) -> str:
    """What becomes of it, which both must say alike."""
    refused, taken = structural(job), VALIDATOR.is_valid(job)
    if refused is None:
        VALIDATOR.validate(job)
        return "taken"
    assert not (refused and taken), (refused, job)
    return "refused" if refused else "a rule is broken"


@pytest.mark.parametrize("place", SETTINGS, ids=".".join)
def test_each_value_of_each_setting_is_taken_or_refused_alike(place: tuple[str, ...]) -> None:
    alone = {name: FULL[name] for name in {"input", "model", "output", place[0]} if name in FULL}
    for value in [*VALUES, *SETTINGS[place].get("enum", ())]:
        job = copy.deepcopy(alone)
        put(job, place, value)
        compare(job)
        put(job, (*place[:-1], f"{place[-1]}s"), value)
        assert compare(job) == "refused"


@st.composite
def changed(draw: st.DrawFn) -> Job:
    """A job of ours in which a few settings have a usual value, and perhaps one any other."""
    job: Job = copy.deepcopy(draw(st.sampled_from([PLAIN, CHUNKED, *JOBS, *ON_PAGES])))
    for place in draw(st.lists(st.sampled_from(list(SETTINGS)), max_size=4)):
        form = SETTINGS[place]
        usual = [*form.get("examples", ()), *form.get("enum", ()), *([form["default"]] if "default" in form else ())]
        put(job, place, draw(st.sampled_from(usual or VALUES)))
    if draw(st.booleans()):
        put(job, draw(st.sampled_from(list(SETTINGS))), draw(st.sampled_from(VALUES)))
    return job


@settings(max_examples=150)
@given(changed())
def test_what_is_changed_together_is_taken_or_refused_alike(job: Job) -> None:
    event(compare(job))


@pytest.mark.parametrize("place", LEAVES, ids=".".join)
def test_each_setting_is_explained_and_its_example_is_taken(place: tuple[str, ...]) -> None:
    form = LEAVES[place]
    assert form["title"] == ".".join(place) and form["description"] and form["examples"]
    leaf = jsonschema_rs.validator_for({key: form[key] for key in form if key != "title"})
    for value in (*form["examples"], *([form["default"]] if "default" in form else [])):
        leaf.validate(value)
    assert not leaf.is_valid(None) and not leaf.is_valid([[1]])


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("output", "path", "out.txt"),
        ("alerts", "error_percent", 100),
        ("alerts", "error_percent", True),
        ("alerts", "stalled_min", 0),
        ("model", "thinking", -2),
        ("model", "thinking", "lots"),
        ("limits", "rpm", -1),
        ("limits", "rpm", True),
        ("limits", "rqm", 1),
    ],
)
def test_a_value_that_is_out_of_range_is_underlined(section: str, key: str, value: object) -> None:
    job = {**PLAIN, section: {**PLAIN.get(section, {}), key: value}}
    assert not VALIDATOR.is_valid(job) and structural(job) is not None


def test_names_of_the_program_do_not_show() -> None:
    text = schema_text()
    assert "$ref" not in text and "Section" not in text and "null" not in text
    assert "](" not in text  # what an editor shows is no page of ours


def test_settings_prints_it(cli: Callable[..., Ran]) -> None:
    ran = cli("settings", "--schema")
    assert (ran.code, ran.out, ran.err) == (0, schema_text(), "")
    assert jsonschema_rs.meta.is_valid(ran.json)
    assert cli("settings", "limits", "--schema").code == 2


def test_taplo_reads_it(tmp_path: Path, root: Path) -> None:
    taplo = shutil.which("taplo", path=Path(sys.executable).parent)
    if taplo is None and not os.environ.get("CI"):
        pytest.skip("taplo is not installed")
    assert taplo
    (tmp_path / "job.schema.json").write_text(schema_text())
    job = (root / "jobs" / "summarize.toml").read_text("utf-8")
    (tmp_path / "good.toml").write_text(f"#:schema job.schema.json\n{job}")
    (tmp_path / "bad.toml").write_text(f"#:schema job.schema.json\n{job.replace('rpm', 'rmp')}")
    found = {}
    for name in ("good.toml", "bad.toml"):
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        ran = subprocess.run([taplo, "lint", name], cwd=tmp_path, env=environment, capture_output=True, text=True)
        found[name] = (ran.returncode, "'rmp' was unexpected" in ran.stderr)
    assert found == {"good.toml": (0, False), "bad.toml": (1, True)}


def test_the_schema_is_one_document() -> None:
    assert json.loads(schema_text()) == SCHEMA and schema_text().endswith("}\n")
