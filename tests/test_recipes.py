"""The recipes, as they stand on their pages: what is typed there is run against the emulator."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import xlsxwriter
from commands import Ran
from drawing import pdf
from python_calamine import CalamineWorkbook
from serving import served
from test_docs import PAGES, blocks

PAGE = PAGES["docs/recipes.md"]
BIN = Path(sys.executable).parent
Cli = Callable[..., Ran]


def recipe(heading: str) -> str:
    """What stands under a heading."""
    (found,) = (
        text
        for name, page in PAGES.items()
        if name.startswith("docs/recipes")
        for text in re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", page, re.S | re.M)
    )
    return str(found)


def lay_out(text: str) -> None:
    """Write the files that it shows."""
    for name, content in re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)\n```", text, re.DOTALL):
        Path(name).write_text(content + "\n", "utf-8")


def play(cli: Cli, heading: str) -> list[Ran]:
    """Lay out its files, type its commands, and give what each of `pipeline` came to."""
    lay_out(recipe(heading))
    ran = []
    for line in "\n".join(blocks(recipe(heading), "sh")).splitlines():
        words = shlex.split(line.removeprefix("nohup "), comments=True)
        if words and words[0] == "pipeline":
            typed = words[1 : next((at for at, word in enumerate(words) if word in (">", "&")), None)]
            agreed = ["--yes"] if typed[0] == "run" or "--pilot" in typed else []
            unlimited = ["--rpm", "0"] if typed[0] == "run" else []
            ran.append(cli(*typed, *agreed, *unlimited))
            assert ran[-1].code in (0, 1), f"{line}\n{ran[-1].out}{ran[-1].err}"
    assert ran
    return ran


def table(rows: int, long: str = "") -> None:
    """comments.csv of the page."""
    Path("comments.csv").write_text(
        "id,comment\n" + "".join(f'c{row},"Order {row} came late, the box was dented. {long}"\n' for row in range(rows))
    )


def answers(name: str = "comments") -> pl.DataFrame:
    return pl.read_csv(f"results/{name}.csv")


@pytest.fixture(scope="module")
def service() -> Iterator[str]:
    with served() as url:
        yield url


@pytest.fixture
def night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: str) -> Path:
    """An empty folder with the table and the job of the page, and the emulator for the service."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", service)
    monkeypatch.setenv("GEMINI_API_KEY", f"key-{tmp_path.name}")
    table(30)
    lay_out(PAGE.partition("\n## ")[0])
    return tmp_path


def test_the_price_is_known_before_the_night_and_the_pilot_is_kept(night: Path, cli: Cli) -> None:
    bounds, pilot, compared, by = play(cli, "Know the price before the night")
    assert "ranges are bounds" in bounds.out and "ranges are bounds" not in pilot.out
    assert "gemini-3.8-flash" in compared.out
    assert "fits: " in by.out


def test_a_night_the_morning_after_and_a_changed_prompt(night: Path, cli: Cli) -> None:
    (ran,) = play(cli, "Run overnight")
    assert ran.code == 0
    assert answers()["status"].to_list() == ["ok"] * 30
    runs, report, failed, shown, again = play(cli, "The next morning")
    assert "runs/comments" in runs.out and "30 ok" in report.out and failed.code == 0
    assert "came late" in shown.out
    assert again.code == 0 and "nothing is left to be sent" in again.err
    job = Path("comments.toml").read_text()
    Path("comments.toml").write_text(
        job.replace("What is this customer unhappy with?", "What does this customer want?")
    )
    dry, sample, diff, others, before = play(cli, "Change the prompt")
    assert "[prompt] template" in dry.err + dry.out and "20 ok" in sample.err and "What does this" in diff.out
    assert "10 left: 10 calls" in others.err
    assert before.code == 0
    Path("comments.toml").write_text(job)
    assert "nothing is left to be sent" in cli("run", "comments.toml", "--yes", "--rpm", "0").err, (
        "changed back it costs nothing"
    )


def test_two_models_are_compared_on_the_same_rows(night: Path, cli: Cli) -> None:
    first, second, diff, rest = play(cli, "Compare two models")
    assert "20 ok" in first.err and "20 ok" in second.err
    assert "gemini-3.5-flash-lite → gemini-3.6-flash" in diff.out and "found in both by their ids" in diff.out
    assert "20 answers kept" in rest.err and set(answers()["model"]) == {"gemini-3.5-flash-lite"}


def test_what_was_cut_off_is_redone_alone(night: Path, cli: Cli) -> None:
    Path("comments.csv").write_text(
        Path("comments.csv").read_text() + f'long,"{"The parcel was late again. " * 200}"\n'
    )
    Path("comments.toml").write_text(Path("comments.toml").read_text().replace("= 100\n", "= 20\n"))
    assert cli("run", "comments.toml", "--yes", "--rpm", "0").code == 1
    told, redone, rest = play(cli, "Redo what was cut off")
    assert "--retry truncated" in told.out and redone.code == 0 and rest.code == 0
    assert answers()["status"].to_list() == ["ok"] * 31


def test_many_short_rows_go_several_in_a_call(night: Path, cli: Cli) -> None:
    table(120)
    estimate, sample, shown, better, run = play(cli, "50,000 short rows")
    assert "rows are packed: 6 calls where rows asked alone would take 120" in estimate.out
    assert "40 ok" in sample.err and shown.code == 0 and better.code == 0 and run.code == 0
    assert set(answers("labels")["label"]) <= {"delivery", "payment", "product", "service", "other"}


def test_jobs_at_one_quota_are_started_side_by_side(night: Path, cli: Cli) -> None:
    lay_out(recipe("50,000 short rows"))
    assert [ran.code for ran in play(cli, "Several jobs at one quota")] == [0, 0]


def test_a_cap_of_the_month_counts_every_run_of_the_key(night: Path, cli: Cli) -> None:
    lay_out(recipe("Keep to a month's budget"))
    spent = cli("run", "comments.toml", "--yes", "--rpm", "0", "--json").json["cost_usd"]
    job = Path("monthly.toml").read_text()
    Path("monthly.toml").write_text(job.replace("per_month = 60", f"per_month = {spent:.6f}"))
    stopped = cli("run", "monthly.toml", "--yes", "--rpm", "0")
    assert stopped.code == 3 and "month" in stopped.err + stopped.out
    Path("monthly.toml").write_text(job)
    assert cli("run", "monthly.toml", "--yes", "--rpm", "0").code == 0


def test_the_line_for_cron_runs_with_the_little_that_cron_gives(night: Path, service: str) -> None:
    table(3)
    (line,) = blocks(PAGE, "cron")
    *times, command = line.split(maxsplit=5)
    for field, most in zip(times, (59, 23, 31, 12, 7), strict=True):
        assert field == "*" or int(field) <= most
    assert "%" not in command, "cron makes it a line break"
    home = night / "home"
    (home / "night").mkdir(parents=True)
    for name in ("comments.csv", "comments.toml"):
        shutil.move(name, home / "night" / name)
    (home / "night" / ".venv").symlink_to(BIN.parent)
    job = (home / "night" / "comments.toml").read_text()
    (home / "night" / "comments.toml").write_text(job + f'\n[endpoint]\nbase_url = "{service}"\n')
    secret = "\n".join(blocks(recipe("Every night with cron"), "sh"))
    typed = subprocess.run(
        ["sh", "-c", secret], cwd=home / "night", check=True, env=os.environ | {"GEMINI_API_KEY": "c"}
    )
    assert typed.returncode == 0 and (home / "night" / ".env").stat().st_mode & 0o777 == 0o600
    bare = {"HOME": str(home), "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh", "LOGNAME": "somebody"}
    ran = subprocess.run(["/bin/sh", "-c", command], env=bare, cwd=home, timeout=60, check=False)
    log = (home / "night" / "night.log").read_text()
    assert ran.returncode == 0, log
    assert "3 ok" in log and "warning" not in log


def test_the_units_are_what_systemd_takes(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd")
    names = [*re.findall(r"`~/.config/systemd/user/(\S+)`", PAGE), "server.service"]
    units = dict(zip(names, blocks(PAGE, "systemd"), strict=True))
    units["server.service"] = units["server.service"].replace("/srv/night", str(tmp_path))
    for name, unit in units.items():
        (tmp_path / name).write_text(
            unit.replace("%h/night/.venv/bin", str(BIN)).replace("%h/night", str(tmp_path)) + "\n"
        )
    found = subprocess.run(
        ["systemd-analyze", "verify", "--user", "--man=no", *(str(tmp_path / name) for name in units)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert (found.returncode, found.stderr) == (0, "")


def test_the_unit_of_a_server_has_its_key_from_a_credential(tmp_path: Path) -> None:
    unit = blocks(recipe("The key as a credential"), "systemd")[0]
    (command,) = re.findall(r"ExecStart=/bin/sh -c '(.*)'", unit)
    program = tmp_path / ".venv/bin/pipeline"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$GEMINI_API_KEY" "$@"\n')
    program.chmod(0o755)
    (tmp_path / "gemini").write_text("AQ.of-the-server")
    said = command.replace("%d", str(tmp_path)).replace("$$", "$")
    environment = {name: value for name, value in os.environ.items() if name != "GEMINI_API_KEY"}
    ran = subprocess.run(
        ["/bin/sh", "-c", said], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "AQ.of-the-server run comments.toml --yes --wait\n"


def test_a_workbook_comes_in_and_answers_go_out_for_excel(night: Path, cli: Cli) -> None:
    with xlsxwriter.Workbook("comments.xlsx") as book:
        book.add_worksheet("October")
        sheet = book.add_worksheet("November")
        for row, cells in enumerate((("id", "comment"), ("a", "坏了"), ("b", "=gut"))):
            for column, cell in enumerate(cells):
                sheet.write_string(row, column, cell)
    assert [ran.code for ran in play(cli, "Excel: a workbook in, a table out that Excel opens")] == [0, 0]
    assert Path("results/comments.csv").read_bytes().startswith(b"\xef\xbb\xbfid,comment")
    (script,) = blocks(recipe("Excel: a workbook in, a table out that Excel opens"), "python")
    exec(script, {})
    (written,) = CalamineWorkbook.from_path("results/comments.xlsx").sheets_metadata
    rows = CalamineWorkbook.from_path("results/comments.xlsx").get_sheet_by_name(written.name).to_python()
    assert [row[:2] for row in rows] == [["id", "comment"], ["a", "坏了"], ["b", "'=gut"]]


def test_a_table_in_gbk_is_read_and_init_writes_such_a_job(night: Path, cli: Cli) -> None:
    heading = "A CSV of Chinese Excel, in GBK"
    lay_out(recipe(heading))
    Path("评论.csv").write_text("编号;评论\n一;盒子坏了，没有人接电话。\n二;很好，谢谢。\n", "gbk")
    assert cli("run", "gbk.toml", "--yes", "--rpm", "0").code == 0
    written = Path("results/评论.csv").read_text("utf-8-sig")
    assert written.startswith("编号,评论,status") and "二,很好，谢谢。,ok" in written
    assert cli("init", "评论.csv", "--to", "made.toml").code == 0
    made, shown = (tomllib.loads(Path(name).read_text("utf-8"))["input"] for name in ("made.toml", "gbk.toml"))
    assert (made["separator"], made["id"]) == (shown["separator"], shown["id"])
    assert "盒子坏了".encode("gbk").decode(made["encoding"]) == "盒子坏了"


def test_each_pdf_of_a_folder_is_a_row(night: Path, cli: Cli) -> None:
    Path("letters/2024").mkdir(parents=True)
    for name in ("a.pdf", "2024/b.pdf"):
        Path("letters", name).write_bytes(pdf([f"The letter {name} asks for the sum of ten pounds and four pence."]))
    assert [ran.code for ran in play(cli, "A folder of PDFs")] == [0, 0, 0]
    rows = answers("letters")
    assert rows["path"].to_list() == ["2024/b.pdf", "a.pdf"] and rows["pages"].to_list() == [1, 1]
    assert "2024/b.pdf" in rows["response"][0]


def test_a_script_gets_one_document(night: Path, cli: Cli) -> None:
    (ran,) = play(cli, "Start from a script")
    assert ran.json["ok"] == 30


def test_a_relay_is_checked_then_asked(night: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_KEY", "sk-anything")
    with served(models=("gpt-5-mini",)) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        assert [ran.code for ran in play(cli, "A relay, or a model that the tables lack")] == [0, 0, 0]
    assert len(answers("relay").filter(status="ok")) == 30


def test_duckdb_makes_the_table_and_joins_the_answers_and_only_new_rows_are_bought(night: Path, cli: Cli) -> None:
    duckdb = pytest.importorskip("duckdb")
    heading = "DuckDB before and after"
    lay_out(recipe(heading))
    scripts = [compile(Path(name).read_text(), name, "exec") for name in ("before.py", "after.py")]
    bought = []
    for more in (20, 3):
        with duckdb.connect("shop.duckdb") as shop:
            shop.sql("CREATE TABLE IF NOT EXISTS comments (id INTEGER, comment VARCHAR)")
            shop.sql(f"INSERT INTO comments SELECT i + {more}, 'Late: ' || i || ' of {more}' FROM range({more}) t(i)")
        exec(scripts[0], {})
        ran = cli("run", "shop.toml", "--yes", "--rpm", "0", "--json")
        bought.append(json.loads(ran.out[ran.out.index("{") :])["calls"])
        exec(scripts[1], {})
    with duckdb.connect("shop.duckdb") as shop:
        assert shop.sql("SELECT count(*) FROM comments JOIN labels USING (id)").fetchall() == [(23,)]
    assert bought == [20, 3]


def test_a_model_of_dbt_is_a_job(night: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    lay_out(recipe("DuckDB before and after") + recipe("A model of dbt"))

    class Dbt:
        """What dbt-duckdb hands to a model."""

        def __init__(self, session: Any) -> None:
            self.ref = session.table

        def config(self, **settings: str) -> None:
            assert settings == {"materialized": "table"}

    names: dict[str, Any] = {}
    exec(Path("labels.py").read_text(), names)
    with duckdb.connect() as session:
        session.sql("CREATE TABLE comments AS SELECT i AS id, 'Order ' || i AS comment, 1 AS other FROM range(4) t(i)")
        made = names["model"](Dbt(session), session)
        assert made.columns == ["id", "label", "status", "cost_usd"] and len(made.fetchall()) == 4
