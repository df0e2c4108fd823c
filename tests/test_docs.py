"""README, pages and code say the same."""

import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import reference
from commands import Ran
from test_layers import RANKS

from pipeline import errors
from pipeline.cli.app import BUG
from pipeline.console.plans_json import PLAN_KEYS
from pipeline.process import INTERRUPTED
from pipeline.records import CAUSES, PASSING, ErrorKind
from pipeline.report import RUN_KEYS
from pipeline.sections import JobFile
from pipeline.store.export import PENDING, RESULT_COLUMNS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def command(name: str) -> str:
    """A shell block that is marked in the README, as .ci/run reads it."""
    found = re.search(rf"<!-- command: {name} -->\n```[a-z]*\n(.*?)\n```", README, re.DOTALL)
    assert found, f"README.md has no <!-- command: {name} -->"
    return found[1]


def test_the_reference_is_made_from_the_code() -> None:
    assert reference.PAGE.read_text("utf-8") == reference.page(), "run `.venv/bin/python tests/reference.py`"


def test_every_setting_flag_and_command_has_a_description() -> None:
    for model in reference.sections().values():
        assert model.__doc__
        for key, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{key}"
    for name, command in reference.commands().items():
        assert command.help, name
        for parameter in command.params:
            assert parameter.help, f"{name} {parameter.name}"


def test_every_cause_and_exit_code_has_a_meaning() -> None:
    assert tuple(CAUSES) == get_args(ErrorKind)
    codes = {error.exit_code for error in reference.exceptions()}
    assert set(errors.EXIT_CODES) == codes | {0, 1, INTERRUPTED, BUG}


def test_json_has_the_keys_that_are_promised(here: Path, cli: Callable[..., Ran]) -> None:
    assert tuple(cli("estimate", "jobs/extract.toml", "--json").json) == tuple(PLAN_KEYS)
    assert tuple(cli("run", "jobs/extract.toml", "--offline", "--json").json) == tuple(RUN_KEYS)


def test_the_example_job_in_the_readme_is_valid() -> None:
    for block in re.findall(r"```toml\n(.*?)\n```", README, re.DOTALL):
        JobFile.model_validate(tomllib.loads(block))


def test_every_command_is_in_the_readme() -> None:
    for name in reference.commands():
        assert f"`pipeline {name}" in README, name


def test_every_command_in_the_readme_exists() -> None:
    known = set(reference.commands())
    for name in re.findall(r"pipeline ([a-z]+)", "\n".join(re.findall(r"`(pipeline [^`]*)`", README))):
        assert name in known, name


def test_every_cause_and_column_is_in_the_readme() -> None:
    for kind in get_args(ErrorKind):
        row = next((line for line in README.splitlines() if line.startswith(f"| `{kind}` |")), None)
        assert row, kind
        assert ("yes" in row.split("|")[-2]) == (kind in PASSING), kind
    for column in (*RESULT_COLUMNS, PENDING):
        assert f"`{column}`" in README, column


def test_every_path_in_the_readme_is_there() -> None:
    for path in re.findall(r"`((?:jobs|sample_data|tests|pipeline)/[\w./*-]*)`", README):
        assert list(ROOT.glob(path)), path


@pytest.mark.parametrize("typed", ["estimate jobs/summarize.toml", "run jobs/summarize.toml --offline"])
def test_what_the_readme_shows_is_what_comes(here: Path, cli: Callable[..., Ran], typed: str) -> None:
    shown = README.partition(f"```\n$ pipeline {typed}\n")[2].partition("```")[0]
    ran = cli(*typed.split())
    assert ran.code == 0, ran.err
    hangs_on_the_clock = ("  finished ", "  latency ", "  time ", "  total ")  # and how wide the last column is
    came, told = (
        [" ".join(line.split()) for line in text.splitlines() if not line.startswith(hangs_on_the_clock)]
        for text in (ran.out or ran.err, shown)
    )
    assert came == told


def test_the_drawing_of_the_modules_is_the_code() -> None:
    drawing = README.partition("## Inside")[2].split("```")[1]
    ranks: dict[str, int] = {}
    rank = 0
    for line in drawing.strip("\n").splitlines():
        number, names = line[:3].strip(), line[3:46]
        rank = int(number) if number else rank
        ranks |= dict.fromkeys(re.findall(r"[a-z_]+", names), rank)
    assert ranks == {name: rank for name, rank in RANKS.items() if not name.startswith("__")}


def test_the_two_commands_are_one_line_each_and_ci_runs_them() -> None:
    for name in ("try", "test"):
        assert "\n" not in command(name)
    script = (ROOT / ".ci" / "run").read_text()
    assert "$(readme_command test)" in script and 'step "$test_command"' in script
    assert "$(readme_command try)" in script and 'step "$try_command"' in script


def test_the_top_level_holds_nothing_else() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    top = {path.split("/")[0] for path in listed}
    allowed = {"pyproject.toml", "README.md", "LICENSE", "pipeline", "jobs", "tests", "sample_data", "docs"}
    assert {name for name in top if not name.startswith(".")} == allowed


def test_the_error_tree_in_the_docstring_is_the_code() -> None:
    for name, error in vars(errors).items():
        if isinstance(error, type) and issubclass(error, errors.PipelineError) and error is not errors.PipelineError:
            assert re.search(rf"{name}\s+{error.exit_code}\s", errors.__doc__ or ""), name
