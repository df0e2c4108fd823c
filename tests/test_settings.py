"""`pipeline settings`: what a job file may say, from the same words as docs/reference.md."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import reference
from commands import Ran
from test_docs import PAGES

from pipeline.console.settings import SETTING_KEYS
from pipeline.job import settings
from pipeline.sections import JobFile

EVERY = [each for section in settings.sections() for each in section.settings]


def test_each_key_of_the_job_file_is_a_setting() -> None:
    told = {each.name for each in EVERY}
    endpoint = set(reference.sections()["endpoint"].model_fields)
    for section, model in reference.sections().items():
        for key, field in model.model_fields.items():
            taken = section == "target" and key in endpoint
            assert (f"{section}.{field.alias or key}" in told) != taken, key
    assert {"prompt.examples.input", "tools.function.parameters", "model.prices.cached"} <= told


@pytest.mark.parametrize("setting", EVERY, ids=lambda each: each.name)
def test_each_example_is_lines_of_a_job_file(setting: settings.Setting) -> None:
    lines = tomllib.loads(setting.example)
    section, *within = setting.name.split(".")
    assert section in JobFile.model_fields and list(lines) == [section]
    inner = lines[section]
    for key in within:
        inner = inner[0] if isinstance(inner, list) else inner
        inner = inner[key]
    assert not setting.default or tomllib.loads(f"x = {setting.default}")
    assert setting.kind and setting.about


def test_each_page_is_there_and_is_about_its_section() -> None:
    assert set(settings.PAGES) == {each.name for each in settings.sections()}
    for section in settings.sections():
        page = PAGES[f"docs/{settings.PAGES[section.name]}"]
        assert any(re.search(rf"\b{each.key}\b", page) for each in section.settings), section.name


def test_without_a_name_all_are_shown_a_line_each(cli: Callable[..., Ran]) -> None:
    ran = cli("settings")
    lines = [line.split()[0] for line in ran.out.splitlines()]
    every = [name for each in settings.sections() for name in (each.head, *(own.key for own in each.settings))]
    assert (ran.code, lines) == (0, every)


def test_a_setting_has_type_default_example_and_page(cli: Callable[..., Ran]) -> None:
    shown = cli("settings", "limits.rpm").out
    assert "whole number, 0 or more" in shown and "requests per minute" in shown
    assert "    [limits]\n    rpm = 1000\n" in shown and "docs/quota.md" in shown
    assert 'text; default "America/Los_Angeles"' in cli("settings", "reset_zone").out
    assert "text; required" in cli("settings", "model.name").out


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("rpm", ["limits.rpm"]),
        ("[limits] rpm", ["limits.rpm"]),
        ("Limits.RPM", ["limits.rpm"]),
        ("[[check]]", ["check.holds", "check.message", "check.retry", "check.escalate"]),
        ("name", ["model.name", "tools.function.name", "target.name"]),
        ("target.base_url", ["endpoint.base_url"]),
        ("schema", ["output.schema"]),
    ],
)
def test_a_setting_is_found_by_any_of_its_names(name: str, found: list[str], cli: Callable[..., Ran]) -> None:
    told = cli("settings", name, "--json").json
    assert [each["name"] for each in told] == found
    assert all(tuple(each) == tuple(SETTING_KEYS) for each in told)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("limits.rmp", "limits.rpm"), ("limts", "limits"), ("temprature", "model.temperature"), ("zzz", None)],
)
def test_a_name_that_is_none_gets_what_may_be_meant(name: str, meant: str | None, cli: Callable[..., Ran]) -> None:
    ran = cli("settings", name)
    assert ran.code == 2 and f"{name} is no setting and no section" in ran.err
    assert (f"did you mean {meant}" in ran.err) == (meant is not None) and "`pipeline settings` lists all" in ran.err


def test_the_reference_has_the_same_words() -> None:
    page = (Path(__file__).parent.parent / "docs" / "reference.md").read_text("utf-8")
    for each in EVERY:
        kind = each.kind.replace("|", "\\|")
        assert f"| `{each.key}` | {kind} |" in page, each.name
