"""README and code say the same. `python tests/test_docs.py` prints the generated tables for pasting."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import typer
from commands import Ran
from pydantic import BaseModel
from test_layers import RANKS

from pipeline import errors
from pipeline.cli.app import app
from pipeline.records import PASSING, ErrorKind
from pipeline.sections import JobFile
from pipeline.store.export import PENDING, RESULT_COLUMNS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def sections() -> dict[str, type[BaseModel]]:
    """Section name → its model, in file order."""
    found = {}
    for name, field in JobFile.model_fields.items():
        options = (field.annotation, *get_args(field.annotation))
        found[name] = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return found


def reference() -> list[str]:
    """The job file reference: one table row a key."""
    rows = []
    for section, model in sections().items():
        for key, field in model.model_fields.items():
            default = "" if field.default is None or field.default_factory else f"`{field.default}`"
            shown = "required" if field.is_required() else default
            rows.append(f"| `[{section}] {key}` | {shown} | {(field.description or '').replace('|', '&#124;')} |")
    return rows


def command(name: str) -> str:
    """A shell block that is marked in the README, as .ci/run reads it."""
    found = re.search(rf"<!-- command: {name} -->\n```[a-z]*\n(.*?)\n```", README, re.DOTALL)
    assert found, f"README.md has no <!-- command: {name} -->"
    return found[1]


@pytest.mark.parametrize("row", reference())
def test_the_job_reference_is_the_code(row: str) -> None:
    assert row in README.splitlines()


def test_every_key_has_a_description() -> None:
    for model in sections().values():
        assert model.__doc__
        for key, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{key}"


def test_the_example_job_in_the_readme_is_valid() -> None:
    for block in re.findall(r"```toml\n(.*?)\n```", README, re.DOTALL):
        JobFile.model_validate(tomllib.loads(block))


def test_every_command_and_flag_is_in_the_readme_and_has_help() -> None:
    group = typer.main.get_command(app)
    for name, entry in group.commands.items():
        assert f"`pipeline {name}" in README, name
        assert entry.help, name
        for parameter in entry.params:
            flags = [option for option in parameter.opts if option.startswith("--")]
            if flags and parameter.name != "help":
                assert parameter.help, f"{name} {flags[0]}"
                assert f"`{flags[0]}" in README, f"{name} {flags[0]}"


def test_every_command_in_the_readme_exists() -> None:
    known = set(typer.main.get_command(app).commands)
    for name in re.findall(r"pipeline ([a-z]+)", "\n".join(re.findall(r"`(pipeline [^`]*)`", README))):
        assert name in known, name


def test_every_exit_code_is_in_the_readme() -> None:
    codes = {
        error.exit_code for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "exit_code")
    }
    for code in codes | {0, 1, 130, 70}:
        assert re.search(rf"^\| {code} \|", README, re.MULTILINE), code


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
    allowed = {"pyproject.toml", "README.md", "LICENSE", "pipeline", "jobs", "tests", "sample_data"}
    assert {name for name in top if not name.startswith(".")} == allowed


def test_the_error_tree_in_the_docstring_is_the_code() -> None:
    for name, error in vars(errors).items():
        if isinstance(error, type) and issubclass(error, errors.PipelineError) and error is not errors.PipelineError:
            assert re.search(rf"{name}\s+{error.exit_code}\s", errors.__doc__ or ""), name


if __name__ == "__main__":
    sys.stdout.write("\n".join(reference()) + "\n")
