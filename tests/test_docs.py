"""README, pages and code say the same."""

import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import polars as pl
import pytest
import reference
from commands import Ran
from serving import served
from test_layers import RANKS

from pipeline import errors
from pipeline.console.checks import STEP_KEYS
from pipeline.console.plans_json import PLAN_KEYS
from pipeline.process import INTERRUPTED
from pipeline.records import CAUSES, ErrorKind
from pipeline.report import RUN_KEYS
from pipeline.sections import JobFile

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in (ROOT / "docs").rglob("*.md")}
ALL = {"README.md": README, "README.zh-CN.md": (ROOT / "README.zh-CN.md").read_text("utf-8"), **PAGES}


def command(name: str) -> str:
    """A shell block that is marked in the README, as .ci/run reads it."""
    found = re.search(rf"<!-- command: {name} -->\n```[a-z]*\n(.*?)\n```", README, re.DOTALL)
    assert found, f"README.md has no <!-- command: {name} -->"
    return found[1]


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return re.findall(rf"```{language}\n(.*?)\n```", text, re.DOTALL)


def quoted(text: str) -> list[str]:
    """What stands between backticks, outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def anchors(text: str) -> set[str]:
    """How the headings of a page are linked to."""
    heads = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def links(page: str) -> list[tuple[str, str]]:
    """Links of a page within the repository: the file, and the anchor in it."""
    found = []
    for target in re.findall(r"\]\(([^)]+)\)", ALL[page]):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            path = (ROOT / page).parent / name if name else ROOT / page
            found.append((path.resolve().relative_to(ROOT.resolve()).as_posix(), anchor))
    return found


def test_the_readme_is_short() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 160] == []


def test_every_link_leads_somewhere() -> None:
    for page in ALL:
        for name, anchor in links(page):
            assert (ROOT / name).exists(), f"{page}: {name}"
            assert not anchor or anchor in anchors(ALL[name]), f"{page}: {name}#{anchor}"


@pytest.mark.parametrize("page", ALL)
def test_every_row_of_a_table_has_the_cells_of_its_head(page: str) -> None:
    cells, rows = 0, 0
    for line in ALL[page].splitlines():
        cells = (cells or len(re.findall(r"(?<!\\)\|", line))) if line.startswith("|") else 0
        rows = rows + 1 if cells else 0
        assert not cells or len(re.findall(r"(?<!\\)\|", line)) == cells, line
        assert rows != 2 or set(line) <= set("|-: "), f"{line} stands below a line that heads no table"


def test_every_page_is_reached_from_the_readme() -> None:
    reached, ahead = set[str](), ["README.md"]
    while ahead:
        page = ahead.pop()
        reached.add(page)
        ahead += [name for name, _ in links(page) if name in ALL and name not in reached]
    assert reached == set(ALL)


def test_the_reference_is_made_from_the_code() -> None:
    assert reference.PAGE.read_text("utf-8") == reference.page(), "run `.venv/bin/python tests/reference.py`"


def test_every_setting_flag_and_command_has_a_description() -> None:
    for model in reference.sections().values():
        assert model.__doc__
        for key, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{key}"
    for name, entry in reference.commands().items():
        assert entry.help, name
        for parameter in entry.params:
            assert parameter.help, f"{name} {parameter.name}"


def test_every_cause_and_exit_code_has_a_meaning() -> None:
    assert tuple(CAUSES) == get_args(ErrorKind)
    codes = {error.exit_code for error in reference.exceptions()}
    assert set(errors.EXIT_CODES) == codes | {0, 1, INTERRUPTED, errors.DECLINED, errors.BUG}


def test_json_has_the_keys_that_are_promised(here: Path, cli: Callable[..., Ran]) -> None:
    assert tuple(cli("estimate", "jobs/extract.toml", "--json").json) == tuple(PLAN_KEYS)
    assert tuple(cli("run", "jobs/extract.toml", "--offline", "--json").json) == tuple(RUN_KEYS)
    assert tuple(cli("check", "jobs/extract.toml", "--offline", "--json").json) == tuple(STEP_KEYS)


@pytest.mark.parametrize("page", ALL)
def test_every_job_on_a_page_is_valid(page: str) -> None:
    for block in blocks(ALL[page], "toml"):
        JobFile.model_validate(tomllib.loads(block))


@pytest.mark.parametrize("page", ALL)
def test_every_command_flag_and_setting_on_a_page_exists(page: str) -> None:
    known = reference.commands()
    flags = {option for entry in known.values() for parameter in entry.params for option in parameter.opts}
    flags |= {"--version", "--help", "--install-completion", "--show-completion"}
    shell = (
        re.sub(r"^((nohup|[A-Z_]+=\S+) )*", "", line)
        for block in blocks(ALL[page], "sh")
        for line in block.splitlines()
    )
    for text in (*quoted(ALL[page]), *shell):
        if name := re.match(r"pipeline ([a-z]+)", text):
            assert name[1] in {*known, "help"}, text
        if text.startswith(("--", "pipeline ")):
            assert set(re.findall(r"--[a-z-]+", text)) <= flags, text
        if setting := re.fullmatch(r"\[([a-z]+)\] ([a-z_]+)( = .*)?", text):
            fields = reference.sections()[setting[1]].model_fields
            assert setting[2] in {field.alias or name for name, field in fields.items()}, text


@pytest.mark.parametrize("page", ALL)
def test_every_path_on_a_page_is_there(page: str) -> None:
    for path in quoted(ALL[page]):
        if re.fullmatch(r"(?:jobs|sample_data|tests|pipeline|docs)/[\w./*-]*", path) and "NAME" not in path:
            assert list(ROOT.glob(path)), path


def test_every_name_of_the_architecture_page_is_in_the_code() -> None:
    rooms = {path.stem for path in (ROOT / "pipeline").iterdir()}
    text = PAGES["docs/architecture.md"]
    dotted = [name for name in quoted(text) if re.fullmatch(r"[\w.]+\.\w+", name) and name != "run.log"]
    names = [name for name in dotted if name.split(".")[0] in rooms]
    assert names
    for name in names:
        module, *rest = name.split(".")
        found: Any = import_module(f"pipeline.{module}")
        for part in rest:
            if not hasattr(found, part) and hasattr(found, "__path__"):
                import_module(f"{found.__name__}.{part}")
            assert hasattr(found, part) or part in getattr(found, "__annotations__", ()), name
            found = getattr(found, part, None)
    for block in re.findall(r"```\n(.*?)```", text, re.DOTALL)[1:]:  # lives: a line begins with the module
        for module in re.findall(r"^ *([a-z_]+/[a-z_]+) ", block, re.MULTILINE):
            assert (ROOT / "pipeline" / f"{module}.py").exists(), module


def test_every_command_is_in_the_readme() -> None:
    for name in reference.commands():
        assert f"pipeline {name}" in README, name


@pytest.mark.parametrize(
    ("page", "typed"),
    [("docs/estimates.md", "estimate jobs/summarize.toml"), ("README.md", "run jobs/summarize.toml --offline")],
)
def test_what_a_page_shows_is_what_comes(here: Path, cli: Callable[..., Ran], page: str, typed: str) -> None:
    shown = ALL[page].partition(f"```\n$ pipeline {typed}\n")[2].partition("```")[0]
    ran = cli(*typed.split())
    assert ran.code == 0, ran.err
    hangs_on_the_clock = ("  finished ", "  latency ", "  time ", "  total ")  # and how wide the last column is
    came, told = (
        [" ".join(line.split()) for line in text.splitlines() if not line.startswith(hangs_on_the_clock)]
        for text in (ran.out or ran.err, shown)
    )
    assert came == told


def test_a_job_of_ones_own_goes_as_the_readme_says(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "reviews.csv").write_text(blocks(README, "csv")[0] + "\n")
    (here / "reviews.toml").write_text(blocks(README, "toml")[0])
    with served() as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        monkeypatch.setenv("GEMINI_API_KEY", "own-1")
        for line in command("own").splitlines():
            program, name, *arguments = shlex.split(line, comments=True)
            assert program == "pipeline"
            ran = cli(name, *arguments, *(("--yes", "--rpm", "0") if name == "run" else ()))
            assert ran.code == 0, ran.err
    for name in ("reviews", "reviews-offline"):
        assert len(pl.read_csv(here / "results" / f"{name}.csv").filter(status="ok")) == 2


def test_the_drawing_of_the_modules_is_the_code() -> None:
    drawing = PAGES["docs/architecture.md"].partition("## The house")[2].split("```")[1]
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
    allowed = {
        "pyproject.toml",
        "README.md",
        "README.zh-CN.md",
        "LICENSE",
        "pipeline",
        "jobs",
        "tests",
        "sample_data",
        "docs",
    }
    assert {name for name in top if not name.startswith(".")} == allowed


def test_the_error_tree_in_the_docstring_is_the_code() -> None:
    for error in reference.exceptions():
        assert re.search(rf"{error.__name__}\s+{error.exit_code}\s", errors.__doc__ or ""), error.__name__
