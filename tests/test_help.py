"""The shell as people expect it: help of each command, an example that works, completion."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import reference
from commands import Ran
from rich.cells import cell_len
from serving import served

from pipeline.cli import completing
from pipeline.cli.help import GROUPS

Cli = Callable[..., Ran]
COMMANDS = reference.commands()


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_the_terminal_and_cuts_nothing(
    name: str, width: int, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown = cli(*filter(None, [name, "--help"])).out
    assert "..." not in shown.replace("[ARGS]...", "") and "x>=" not in shown and "<=x" not in shown
    flat = " ".join(shown.split())
    if name:
        assert flat.endswith(f"Example: {COMMANDS[name].epilog}")
        for each in COMMANDS[name].params:
            assert " ".join((each.help or "").split()) in flat, each.name
    else:
        assert all(" ".join(each.help.partition("\n\n")[0].split()) in flat for each in COMMANDS.values())
    assert [line for line in shown.splitlines() if cell_len(line) > width and "|" not in line] == []


def test_each_way_to_ask_for_help_shows_the_same(cli: Cli) -> None:
    assert cli() == cli("help") == cli("--help") == cli("-h")
    assert cli().code == 0
    assert cli("help", "run") == cli("run", "--help") == cli("run", "-h")
    assert "Which rows:\n  --limit N " in cli("help", "run").out


def test_the_version_has_two_names(cli: Cli) -> None:
    assert cli("--version") == cli("-V") and cli("-V").out.startswith("prompt-pipeline ")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("chekc", "'check'"), ("estimat", "'estimate'"), ("help chekc", "'check'"), ("run --ofline", "--offline")],
)
def test_what_is_misspelt_gets_what_was_meant(typed: str, meant: str, cli: Cli) -> None:
    ran = cli(*typed.split())
    assert ran.code == 2 and ran.out == ""
    assert f"Did you mean {meant}?" in ran.err or f"(Possible options: {meant}" in ran.err


def test_options_stand_below_headings_that_name_them_once() -> None:
    for name, groups in GROUPS.items():
        listed = [option for options in groups.values() for option in options]
        assert len(set(listed)) == len(listed)
        assert set(listed) <= {option for each in COMMANDS[name].params for option in each.opts}


def test_the_example_of_each_command_works_as_it_stands(here: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def typed(name: str) -> Ran:
        program, *arguments = shlex.split(COMMANDS[name].epilog)
        assert (program, arguments[0]) == ("pipeline", name)
        ran = cli(*arguments)
        assert ran.code == 0, (name, ran.err)
        return ran

    job = here / "jobs" / "summarize.toml"
    with served() as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        monkeypatch.setenv("GEMINI_API_KEY", "AQ.of-the-tests-0123456789")
        typed("check")
    monkeypatch.delenv("GOOGLE_GEMINI_BASE_URL")
    typed("run")
    changed = job.read_text("utf-8").replace("max_output_tokens = 800", "max_output_tokens = 900")
    job.unlink()
    job.write_text(changed, "utf-8")
    typed("run")
    for name in COMMANDS.keys() - {"check", "run", "emulate"}:
        ran = typed(name)
        assert ran.out or ran.err, name
    assert (here / "summaries.csv").exists() and (here / "products.toml").exists()


def test_the_example_of_the_emulator_serves_until_it_is_stopped(tmp_path: Path) -> None:
    line = shlex.split(COMMANDS["emulate"].epilog)
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *line[1:], "--port", "0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout
    try:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+\n", process.stdout.readline())
        process.terminate()  # does what Ctrl-C does, also where a shell has that ignored
        assert process.wait(10) in (0, 130)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def complete(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """What bash is offered for the last word of a line."""

    def offered(line: str) -> list[str]:
        monkeypatch.setenv("_PIPELINE_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        return cli().out.split()

    return offered


def test_the_shell_completes_commands_options_jobs_runs_models_and_settings(
    here: Path, complete: Callable[[str], list[str]]
) -> None:
    (here / "runs" / "summarize-offline").mkdir(parents=True)
    (here / "runs" / "summarize-offline" / "manifest.json").touch()
    (here / "runs" / "no-run").mkdir()
    (here / "mine.toml").touch()
    (here / "pyproject.toml").touch()
    assert complete("pipeline ") == list(COMMANDS)
    assert complete("pipeline es") == ["estimate"] == complete("pipeline help es")
    assert complete("pipeline run --max") == ["--max-cost"]
    assert complete("pipeline run jobs/s") == ["jobs/summarize.toml"]
    assert "mine.toml" in complete("pipeline run ") and "pyproject.toml" not in complete("pipeline run ")
    assert complete("pipeline report ") == ["summarize-offline"] == complete("pipeline diff x sum")
    assert complete("pipeline run x.toml --model gemini-4") == ["gemini-4-argon"]
    assert complete("pipeline settings limits.r") == ["limits.rpm", "limits.rpd", "limits.reset_zone"]
    assert complete("pipeline settings rp") == ["rpm", "rpd"]


@pytest.mark.parametrize("text", ["/nowhere/", "[", "**", "\0", "../x", "a" * 5000])
def test_completion_of_what_is_no_file_offers_nothing(text: str, here: Path) -> None:
    assert completing.job_files(text) == completing.run_names(text) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_completion_is_printed_for_each_shell(shell: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of its own would be asked which shell it runs in: here it is named."""
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: shell)
    ran = cli("--show-completion")
    assert ran.code == 0 and "_PIPELINE_COMPLETE" in ran.out and "pipeline" in ran.out


def test_completion_is_installed_where_bash_finds_it(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("typer._completion_shared._get_shell_name", lambda: "bash")
    assert cli("--install-completion").code == 0
    script = tmp_path / ".bash_completions" / "pipeline.sh"
    assert str(script) in (tmp_path / ".bashrc").read_text()
    asked = (
        f'. {script}; COMP_WORDS=(pipeline run --ma); COMP_CWORD=2; _pipeline_completion pipeline; echo "$COMPREPLY"'
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(["bash", "-c", asked], env={"PATH": path}, capture_output=True, text=True, check=True)
    assert ran.stdout == "--max-cost\n"
