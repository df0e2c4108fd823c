"""`pipeline diff`: two runs side by side."""

import json
import re
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from commands import UNLIMITED, Ran, small_job
from rich.cells import cell_len
from stores import manifest, result

from pipeline.console import differences
from pipeline.console.screen import Screen
from pipeline.errors import RunStateError
from pipeline.providers.stored import parse_stored
from pipeline.records import Result
from pipeline.report.differences import DIFF_KEYS, Comparison
from pipeline.report.finding import before, find_run
from pipeline.store.run import RunStore

WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta")


def write(here: Path, words: tuple[str, ...] = WORDS, columns: str = "word", **job: str) -> Path:
    path = small_job(here, UNLIMITED + job.pop("more", ""), **job)
    lines = "".join(f"{word},{word[::-1]}\n" for word in words)
    (here / "words.csv").write_text(f"{columns},back\n{lines}")
    return path


def differing(cli: Callable[..., Ran], *flags: object) -> tuple[Any, list[Any]]:
    ran = cli("diff", *flags, "--json")
    assert ran.code == 0, ran.err
    first, *rows = map(json.loads, ran.out.splitlines())
    return first, rows


def made(directory: Path, *results: Result, **changes: Any) -> Path:
    """A run directory with these outcomes, the last of them not sealed."""
    with closing(RunStore(directory, parse_stored)) as store:
        store.open(manifest(**changes))
        for each in results:
            store.append_result(each)
    return directory


def test_an_edit_shows_its_settings_its_numbers_and_the_answers_of_both(here: Path, cli: Callable[..., Ran]) -> None:
    job = write(here, template="Say it loudly: {{ word }}")
    cli("run", job, "--offline")
    alone = cli("diff", "small")
    assert alone.code == 2 and "has no generation before it" in alone.err
    job.write_text(job.read_text().replace("loudly", "gently").replace("output_tokens = 50", "output_tokens = 60"))
    cli("run", job, "--offline")

    told, rows = differing(cli)
    assert tuple(told) == tuple(DIFF_KEYS)
    assert told["runs"][1] == "runs/small-offline" and told["generations"] == [1, 2] and not told["tables_differ"]
    assert {each["setting"]: (each["old"], each["new"]) for each in told["settings"]} == {
        "[prompt] template": ("Say it loudly: {{ word }}", "Say it gently: {{ word }}"),
        "[model] max_output_tokens": (50, 60),
    }
    assert (told["changed"], told["same"], told["new"], told["gone"]) == (6, 0, 0, 0)
    assert told["rows"] == [6, 6] and told["outcomes"] == {"ok": [6, 6]} and told["matched_by"] == "table"
    assert [row["old"]["row"] for row in rows] == list(range(6)) and not any(row["row_changed"] for row in rows)
    assert "loudly" in rows[0]["old"]["response"] and "gently" in rows[0]["new"]["response"]

    shown = cli("diff", "small.toml", "--rows", 1).out
    assert "[model] max_output_tokens   50 → 60" in shown
    assert "[prompt] template   Say it loudly: {{ word }} → Say it gently: {{ word }}" in shown
    assert "0 the same, 6 changed, 0 new, 0 gone; found in both by their numbers: it is the same table" in shown
    assert "row 0   changed   ok\n- Say it loudly: alpha\n+ Say it gently: alpha" in shown
    assert "5 rows more: `--all` shows them" in shown and "row 1" not in shown
    assert "row 5   changed" in cli("diff", "small", "--all").out
    assert differing(cli, "small-offline@1", "small-offline@2") == (told, rows)
    back, _ = differing(cli, "small@2", "small@1", "--rows", 0)
    assert back["settings"][1]["old"] == 60, "as they were named"


def test_rows_are_found_by_their_content_where_there_are_no_ids(here: Path, cli: Callable[..., Ran]) -> None:
    cli("run", write(here, (*WORDS, "beta")), "--offline")
    cli("run", write(here, ("new", "zeta", *WORDS[:5], "beta")), "--offline")
    told, rows = differing(cli)
    assert told["matched_by"] == "content" and told["tables_differ"]
    assert (told["same"], told["changed"], told["new"], told["gone"]) == (7, 0, 1, 0)
    assert [(row["change"], row["new"]["row"], row["old"]) for row in rows] == [("new", 0, None)]


def test_ids_find_rows_that_changed_and_say_so(here: Path, cli: Callable[..., Ran]) -> None:
    job = write(here, columns="word")
    job.write_text(job.read_text().replace('path = "words.csv"', 'path = "words.csv"\nid = "back"'))
    cli("run", job, "--offline")
    table = (here / "words.csv").read_text().splitlines()
    (here / "words.csv").write_text("\n".join([table[0], *table[3:], "changed,ahpla"]) + "\n")
    cli("run", job, "--offline")
    told, rows = differing(cli)
    assert told["matched_by"] == "id" and (told["same"], told["changed"], told["new"], told["gone"]) == (4, 1, 0, 1)
    changed, gone = rows
    assert changed["row_changed"] and changed["new"]["key"] == "ahpla" and changed["new"]["row"] == 4
    assert gone["change"] == "gone" and gone["old"]["key"] == "ateb" and gone["new"] is None
    shown = cli("diff").out
    assert "ahpla   changed   ok   its input changed too" in shown and "the input is another or has changed" in shown


def test_what_can_only_be_compared_by_number_is_said_to_be(here: Path, cli: Callable[..., Ran]) -> None:
    cli("run", write(here), "--offline")
    cli("run", write(here, WORDS[1:], template="Say {{ back }}"), "--offline")
    told, _ = differing(cli)
    assert told["matched_by"] == "number" and told["gone"] == 1 and told["changed"] == 5
    assert "one number is of two rows" in " ".join(cli("diff").out.split())


def test_outcomes_are_told_by_cause_and_by_what_became_of_them(tmp_path: Path) -> None:
    cut = replace(result(0, "truncated"), finish_reason="MAX_TOKENS")
    old = made(tmp_path / "a", cut, result(1), result(2, "error", "server"), result(3))
    new = made(tmp_path / "b", result(0), result(1), result(2, "error", "timeout"))
    found = Comparison(old, new)
    assert found.matched.by == "table"
    assert found.old.outcomes == {"ok": 2, "error server": 1, "truncated MAX_TOKENS": 1}
    assert set(found.moved) == {("truncated MAX_TOKENS", "ok", 1), ("error server", "error timeout", 1)}
    assert found.counts == {"same": 1, "changed": 2, "new": 0, "gone": 1, "not_reached": 0}
    told = found.as_json()
    assert told["answers_usd"] == [0.03, 0.03] and told["input_tokens"] == [36, 36], "of the rows that both have"


def test_no_key_and_nothing_that_is_not_sent_is_shown(tmp_path: Path) -> None:
    key, hidden = (
        "AIzaSyA1234567890abcdefghijklmnopqrstuv",
        {"redact": {"kinds": ["email"], "patterns": {"pin": r"\b\d{4}\b"}}},
    )
    texts = [f"{key} and ann@example.com, 4711", f"{key} or bob@example.com, 4712"]
    prompts = [{"prompt": {"template": f"With {text} say {{{{ word }}}}"}} for text in texts]
    runs = [
        made(tmp_path / name, replace(result(0), response=text), identity=prompt | more)
        for name, text, prompt, more in zip("ab", texts, prompts, ({}, hidden), strict=True)
    ]
    found = Comparison(*runs)
    told = json.dumps([found.as_json(), *(row.as_json() for row in found.differing())])
    assert "[EMAIL_1]" in told and "[PIN_1]" in told and found.counts["changed"] == 1
    assert not [word for word in ("AIza", "@example.com", "4711", "4712") if word in told]


def test_the_generation_before_is_found_whatever_began_the_next(here: Path, cli: Callable[..., Ran]) -> None:
    job = write(here)
    cli("run", job, "--offline")
    cli("run", job, "--offline", "--fresh")
    told, rows = differing(cli)
    assert told["generations"] == [1, 2] and told["same"] == 6 and not rows
    assert find_run("small@1") == before(find_run("small"))
    assert "no setting differs" in cli("diff").out
    cli("run", write(here, template="Sing {{ word }}"), "--offline")
    assert differing(cli, "small@2")[0]["generations"] == [1, 2]
    with pytest.raises(RunStateError, match="has no generation before it"):
        before(find_run("small@1"))


def test_what_cannot_be_compared_is_refused(here: Path, cli: Callable[..., Ran]) -> None:
    cli("run", write(here), "--offline")
    assert "is compared with itself" in cli("diff", "small", "runs/small-offline").err
    assert "leave one of the two out" in cli("diff", "small", "--all", "--rows", 3).err
    assert "no run and no job's name" in cli("diff", "small", "nowhere").err


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal_and_no_word_cut(
    tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "The answer is given in whole words, and no line of it may be wider than the terminal is. "
    texts = [
        (words * 3, words.replace("whole", "complete") * 3),
        ("好" * 90, "好" * 80),
        ("x" * 3000, "x" * 2999 + "y"),
    ]
    runs = [
        made(
            tmp_path / name,
            *(replace(result(row), response=text[side]) for row, text in enumerate(texts)),
            identity={"prompt": {"template": f"Line one\n{name} line\n{words}"}},
        )
        for side, name in enumerate("ab")
    ]
    found = Comparison(*runs)
    screen = Screen()
    monkeypatch.setattr(Screen, "is_terminal", True)
    monkeypatch.setattr(differences, "paged", lambda to: nullcontext())
    screen.width = width
    with screen.capture() as captured:
        differences.show_differences(found, None, screen)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", captured.get()).splitlines()
    answers = next(at for at, line in enumerate(lines) if line.startswith("key 0"))
    assert max(map(cell_len, lines[answers:])) <= width
    beside = [line.partition(" │ ") for line in lines[answers:] if " │ " in line]
    assert bool(beside) == (width >= 100)
    left = [line[2:] for line in lines[answers:] if line.startswith("- ")] or [before for before, _, _ in beside]
    assert words.strip() in " ".join(" ".join(left).split())
    assert "  - a line" in lines and "  + b line" in lines and "1,900" not in captured.get()
    assert " … " not in captured.get().split("key 2")[0] and "more characters" not in captured.get()
