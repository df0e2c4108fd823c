"""The page of a run: opened in a browser, it draws, asks no network, and runs nothing of what it shows."""

import base64
import gzip
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Ran

Cli = Callable[..., Ran]
BROWSER = shutil.which("chromium")
NASTY = "<script>document.title='broken'</script><!-- \u2028 \u202e </pre>"
JOB = """
[input]
path = "in.csv"
id = "id"
[prompt]
template = "{{ text }}"
[model]
name = "gemini-3.5-flash-lite"
max_output_tokens = 200
[output]
path = "out.csv"
"""


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> Path:
    monkeypatch.chdir(tmp_path)
    lines = [f'id{number},"{NASTY} of {number}"' for number in range(30)]
    (tmp_path / "in.csv").write_text("\n".join(["id,text", *lines]) + "\n", "utf-8")
    (tmp_path / "job.toml").write_text(JOB)
    assert cli("run", "job.toml", "--offline", "--yes").code == 0
    return tmp_path


def drawn(page: Path, words: str = "") -> str:
    if BROWSER is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is missing")
        pytest.skip("no chromium")
    command = [
        BROWSER,
        *("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=5000"),
        *(f"--user-data-dir={page.parent / 'browser'}", "--dump-dom", f"{page.as_uri()}#{words}"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "CONSOLE" not in done.stderr
    return done.stdout


def held(page: Path) -> str:
    """All that the page knows of the run."""
    packed = page.read_text("utf-8").split('id="data">')[1].split("<")[0]
    return gzip.decompress(base64.b64decode(packed)).decode()


def test_the_page_draws_its_charts_and_runs_nothing_that_rows_hold(finished: Path, cli: Cli) -> None:
    assert cli("report", "job-offline", "--html", "run.html").code == 0
    dom = drawn(finished / "run.html")
    assert "<title>job</title>" in dom
    assert dom.count("<canvas") == 5
    assert "A rehearsal" in dom
    assert "id29" in dom


def test_the_page_without_text_has_no_id_no_answer_and_no_path(finished: Path, cli: Cli) -> None:
    assert cli("report", "job-offline", "--html", "run.html", "--no-text").code == 0
    dom = drawn(finished / "run.html")
    assert dom.count("<canvas") == 5
    kept = held(finished / "run.html")
    for secret in ("id29", "broken", "runs/job-offline", "out-offline", "{{ text }}", str(finished)):
        assert secret not in kept


def test_the_page_names_no_address_to_load_from(finished: Path, cli: Cli) -> None:
    assert cli("report", "job-offline", "--html", "run.html").code == 0
    page = (finished / "run.html").read_text("utf-8")
    assert "default-src 'none'" in page and " src=" not in page and "@import" not in page
    assert NASTY not in page


def test_no_text_without_a_page_is_refused(finished: Path, cli: Cli) -> None:
    assert cli("report", "job-offline", "--no-text").code == 2


def test_a_search_shows_the_rows_that_hold_the_words(finished: Path, cli: Cli) -> None:
    assert cli("report", "job-offline", "--html", "run.html").code == 0
    found = drawn(finished / "run.html", "id17").split("Rows and answers")[1].split("The job as run")[0]
    assert " 1 rows" in found
    assert "<td>id17</td>" in found and "<td>id18</td>" not in found


def test_a_run_without_a_call_has_a_page_that_says_so(finished: Path, cli: Cli) -> None:
    for path in (finished / "runs" / "job-offline").glob("*"):
        if path.name != "manifest.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert cli("report", "job-offline", "--html", "run.html").code == 0
    assert "No call was made yet" in drawn(finished / "run.html")
