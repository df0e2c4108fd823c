"""What others wrote reaches a terminal as text: ids, columns, file names, what a server says."""

import json
import os
import pty
import re
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from commands import Ran
from hypothesis import given
from hypothesis import strategies as st
from playing import JsonHandler

from pipeline.console.screen import err, out, show_columns, show_grid, styled
from pipeline.terminal import escaped_json, one_line, visible

TITLE = "\x1b]0;owned\x07"
NASTY = f"{TITLE}\x1b[31m\x9b2J\u202edesrever\u200b\ufeff[bold]x[/][/nothing]:smile:\b\r\x7f"
SHOWN = r"\x1b]0;owned\x07\x1b[31m\x9b2J\u202edesrever\u200b\ufeff[bold]x[/][/nothing]:smile:\x08\x0d\x7f"

DRAWN = re.compile("[\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd\U00013430-\U0001343f]")
"""Formats by their category, but with ink: signs of Arabic, Syriac, Kaithi and hieroglyphs."""


def hidden(text: str) -> list[str]:
    """Characters that a terminal obeys, reorders by or does not show."""
    unseen = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return [each for each in DRAWN.sub("", text) if unicodedata.category(each) in unseen and each not in "\n\t"]


@given(st.text(st.characters() | st.characters(categories=["Cc", "Cf", "Cs", "Zl", "Zp"])))
def test_nothing_hidden_is_left_of_any_text(text: str) -> None:
    assert not hidden(visible(text))
    assert not hidden(one_line(text)) and "\n" not in one_line(text) and "\t" not in one_line(text)


@given(st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"])))
def test_what_people_write_stays_as_it_is(text: str) -> None:
    assert visible(text) == text or any(unicodedata.category(each) in ("Lo", "Mn") for each in text)
    assert visible("评论 – “naïve” 👍🏽 👨‍👩‍👧 ❤️ שלום".replace("\u200d", "")) == "评论 – “naïve” 👍🏽 👨👩👧 ❤️ שלום"


@given(st.dictionaries(st.text(), st.text()))
def test_json_says_the_same_without_anything_hidden(value: dict[str, str]) -> None:
    text = escaped_json(json.dumps(value, ensure_ascii=False))
    assert json.loads(text) == value and not hidden(text)


@pytest.mark.case("D8")
def test_the_screen_shows_what_it_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    out.print(NASTY)
    out.print(styled(("an error: ", "red"), NASTY))
    show_columns(out, [(NASTY, "1\n2", NASTY)])
    show_grid(("id", "n"), [(NASTY, "1"), ("two\nlines", "22")])
    err.print(NASTY, style="bold")
    shown = capsys.readouterr()
    assert shown.out.count(SHOWN) == 5 and SHOWN in shown.err
    assert r"two\nlines" in shown.out and r"1\n2" in shown.out
    assert not hidden(shown.out + shown.err)


# ---- every command


@pytest.fixture
def nasty(here: Path) -> Path:
    """A job whose name, table, columns and ids are an attack."""
    table = here / "t\x1b[31m[bold]\u202e.csv"
    table.write_text('"id\x1b[31m[/]",word\n"' + NASTY.replace("\r", "") + '",\n"[bold]\x9b[/x]",beta\n', "utf-8")
    return write(here, "word")


def write(here: Path, column: str, **more: str) -> Path:
    job = here / "j[bold].toml"
    job.write_text(
        f'[input]\npath = "t\\u001b[31m[bold]\\u202e.csv"\nid = "id\\u001b[31m[/]"\ntext = "word"\n'
        f'[prompt]\ntemplate = "{{{{ {column} }}}}"\n[model]\nname = "{more.get("model", "gemini-3.5-flash-lite")}"\n'
        '[limits]\nrpm = 0\ntpm = 0\n[output]\npath = "out\\u001b[31m.jsonl"\n',
        "utf-8",
    )
    return job


class Server(JsonHandler):
    """Lists a model whose name is an attack, and refuses everything in such words."""

    def do_GET(self) -> None:
        self.answer(200, {"models": [{"name": f"models/{NASTY}"}]})

    def do_POST(self) -> None:
        self.answer(400, {"error": {"code": 400, "message": f"no {NASTY}", "status": "INVALID_ARGUMENT"}})


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that lists and says nasty things, as the job's service."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("GEMINI_API_KEY", "some-key")
        yield
        server.shutdown()


def harmless(ran: Ran, *codes: int) -> str:
    assert ran.code in codes, ran.err
    assert "Traceback" not in ran.err and not hidden(ran.out + ran.err), ran
    return ran.out + ran.err


@pytest.mark.case("D8")
def test_no_command_obeys_its_table_its_files_or_its_flags(nasty: Path, cli: Callable[..., Ran]) -> None:
    job = nasty
    assert r"\x1b" in harmless(cli("estimate", job, "--offline"), 0)
    assert r"\x1b" in harmless(cli("check", job, "--offline"), 0)
    harmless(cli("run", job, "--show-config"), 0)
    assert r"\x1b" in harmless(cli("run", job, "--offline"), 1)
    assert r"\x1b]0;owned\x07" in harmless(cli("report", "--failed"), 0)
    for command in ("report", "runs"):
        assert "j[bold]" in harmless(cli(command), 0)
        assert json.loads(re.sub("^", "", cli(command, "--json").out))
        harmless(cli(command, "--json"), 0)
    harmless(cli("report", "--failed", "--json"), 0)
    for arguments in ([NASTY], ["run", NASTY], ["report", NASTY], ["run", job, NASTY], ["run", job, f"--{NASTY}"]):
        assert r"\x1b]0" in harmless(cli(*arguments), 2)
    harmless(cli("run", job, "--limit", NASTY), 2)
    for flag in ("--by", "--max-cost", "--model"):
        harmless(cli("estimate", job, flag, NASTY), 2)
    for flag in ("--retry", "--out", "--set"):
        harmless(cli("run", job, "--retry", "error", "--offline", flag, NASTY), 2)
    harmless(cli("emulate", "--faults", NASTY), 2)
    harmless(cli("emulate", "--host", NASTY), 2)


@pytest.mark.case("D8")
def test_no_error_obeys_a_column_a_template_or_an_output(nasty: Path, here: Path, cli: Callable[..., Ran]) -> None:
    harmless(cli("check", write(here, "wrod"), "--offline"), 2)
    harmless(cli("check", write(here, "word", model="x\\u001b[31m"), "--offline"), 2)
    twice = next(here.glob("t*.csv"))
    twice.write_text('"id\x1b[31m[/]",word\n"\x1b[31ma",b\n"\x1b[31ma",c\n', "utf-8")
    assert r"\x1b" in harmless(cli("check", write(here, "word"), "--offline"), 2)
    twice.unlink()
    assert r"\x1b" in harmless(cli("check", write(here, "word"), "--offline"), 2)
    assert r"\x1b" in harmless(cli("check", write(here, "word").rename("j\x1b]0;owned\x07.toml"), "--offline"), 2)
    (here / "bad\x1b[31m.toml").write_text("[input\x1b]\n", "utf-8")
    assert r"\x1b" in harmless(cli("run", "bad\x1b[31m.toml"), 2)


@pytest.mark.case("D8")
def test_no_command_obeys_a_server(hostile: None, nasty: Path, cli: Callable[..., Ran]) -> None:
    assert SHOWN.replace(r"\x0d", "")[:20] in harmless(cli("check", nasty), 2, 3)
    harmless(cli("run", nasty, "--yes"), 1, 3)
    harmless(cli("report", "--failed"), 0)


@pytest.mark.case("D8")
def test_a_traceback_is_shown_as_text(here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError(NASTY)

    monkeypatch.setattr("pipeline.console.models_json", broken)
    ran = cli("models", "--json")
    assert ran.code == 70 and r"\x1b]0;owned\x07" in ran.err and not hidden(ran.out + ran.err)
    assert "bug" in json.loads(ran.out)["error"]


@pytest.mark.case("D8")
def test_a_terminal_gets_only_our_own_sequences(nasty: Path) -> None:
    """Colours and the progress line are ours; what the table brings is text there too."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pipeline", "run", str(nasty), "--offline"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 65536):
            written += part
    except OSError:  # Linux: the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 1
    assert rb"out\x1b[31m" in written
    for sequence in (b"\x1b]", b"\x1b[31m[bold]", "\x9b".encode(), "\u202e".encode(), b"\x07"):
        assert sequence not in written
