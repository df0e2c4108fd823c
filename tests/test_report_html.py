"""The page of a run: opened in a browser, it draws, asks no network, and runs nothing of what it shows."""

import base64
import gzip
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from commands import Ran, small_job
from pypdf import PdfReader
from serving import served

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


def drawn(page: Path, words: str = "", *flags: str) -> str:
    if BROWSER is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is missing")
        pytest.skip("no chromium")
    command = [
        BROWSER,
        *("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=5000"),
        *(f"--user-data-dir={page.parent / 'browser'}", *(flags or ("--dump-dom",)), f"{page.as_uri()}#{words}"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "CONSOLE" not in done.stderr
    return done.stdout


def held(page: Path) -> str:
    """All that the page knows of the run."""
    html = page.read_text("utf-8")
    packed = [html.split(f'id="{name}">')[1].split("<")[0] for name in ("data", "rows")]
    return "\n".join(gzip.decompress(base64.b64decode(each)).decode() for each in packed if each)


def test_the_page_draws_its_charts_and_runs_nothing_that_rows_hold(finished: Path, cli: Cli) -> None:
    assert cli("report", "job-offline", "--html", "run.html").code == 0
    dom = drawn(finished / "run.html")
    assert "<title>Rehearsal: job</title>" in dom
    assert [dom.count(f"<figcaption>{title}") for title in ("Calls", "Tokens", "Latency", "Length of")] == [1, 3, 1, 2]
    assert dom.count("<canvas") == 7
    assert "A rehearsal: the emulator answered" in dom
    assert "id29" in dom
    shown = dom.split("Rows and answers</h2>")[1]
    assert "document.title='broken'&lt;/script&gt;&lt;!-- \\u2028 \\u202e &lt;/pre&gt; of 29" in shown


def test_the_page_without_text_has_no_id_no_answer_and_no_path(finished: Path, cli: Cli) -> None:
    assert cli("report", "job-offline", "--html", "run.html", "--no-text").code == 0
    dom = drawn(finished / "run.html")
    assert dom.count("<canvas") == 7 and "Rows and answers</h2>" not in dom
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


def test_a_search_shows_the_rows_that_hold_the_words_and_the_page_what_the_run_waited_for(
    finished: Path, cli: Cli
) -> None:
    with (finished / "runs/job-offline/run.log").open("a") as log:
        log.write('{"at": "2026-11-30T12:00:00Z", "event": "progress", "seconds": 9.0, "bound_s": {"rpm": 7.5}}\n')
    assert cli("report", "job-offline", "--html", "run.html").code == 0
    waited, found = drawn(finished / "run.html", "id17").split("Rows and answers</h2>")
    found = found.split("The job as run</h2>")[0]
    assert '<td>rpm</td><td class="n">7.5</td><td class="n">100</td>' in waited.split("Why it was not faster</h2>")[1]
    assert " 1–1 of 1 rows" in found
    assert "<td>id17</td>" in found and "<td>id18</td>" not in found


def test_a_run_without_a_call_has_a_page_that_says_so(finished: Path, cli: Cli) -> None:
    for path in (finished / "runs" / "job-offline").glob("*"):
        if path.name != "manifest.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert cli("report", "job-offline", "--html", "run.html").code == 0
    assert "No call was made yet" in drawn(finished / "run.html")


def test_on_paper_are_its_charts_and_every_column_and_nothing_to_press(finished: Path, cli: Cli) -> None:
    assert cli("report", "job-offline", "--html", "run.html").code == 0
    drawn(finished / "run.html", "", f"--print-to-pdf={finished / 'run.pdf'}", "--no-pdf-header-footer")
    pages = PdfReader(finished / "run.pdf").pages
    assert sum(len(page.images) for page in pages) == 7
    words = " ".join("".join(page.extract_text() for page in pages).split())
    assert "row outcome input answer in out USD s" in words and "of 29" in words and "The job as run" in words
    assert "in their order" not in words and "Drag across" not in words


def test_an_input_that_changed_is_not_shown_and_that_is_told(finished: Path, cli: Cli) -> None:
    (finished / "in.csv").write_text("id,text\n1,another\n")
    assert cli("report", "job-offline", "--html", "run.html").code == 0
    kept = held(finished / "run.html")
    assert "in.csv is not what it was when this was asked" in kept and '"answer":["' in kept


def test_what_must_not_be_sent_is_not_on_the_page_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_text("id,text,more\n1,Write to ada@example.org,7\n")
    job = JOB.replace("{{ text }}", "{{ text }} {{ more }}") + '[redact]\nkinds = ["email"]\n'
    (tmp_path / "job.toml").write_text(job)
    assert cli("run", "job.toml", "--offline", "--yes").code == 0
    assert cli("report", "job-offline", "--html", "run.html").code == 0
    kept = held(Path("run.html"))
    assert '"input":["text: Write to [EMAIL_1]\\nmore: 7"]' in kept and "ada@" not in kept


def test_the_log_says_what_the_charts_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    """The limits that the job sets, the range of the estimate, and what failed by cause."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEMINI_API_KEY", "a-key")
    with served(faults="503*2") as url:
        limits = f'[limits]\nrpm = 3000\ntpm = 1000000\n[endpoint]\nbase_url = "{url}"'
        path = small_job(tmp_path, limits)
        assert cli("run", str(path), "--yes", "--max-cost", "1").code == 0
    assert cli("report", "small", "--html", "run.html").code == 0
    data = orjson.loads(held(Path("run.html")).splitlines()[0])
    series = data["series"]
    assert {*series["rpm"]} <= {None, 3000} and series["rpm"][-1] == 3000 and series["tpm"][-1] == 1_000_000
    assert [sum(counts) for counts in series["troubles"].values()] == [2] and "server" in series["troubles"]
    low, expected, high = data["estimate"]["cost_usd"]
    assert 0 < low <= expected <= high


def test_files_are_shown_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("jobs", "sample_data"):
        shutil.copytree(Path(__file__).parent.parent / folder, tmp_path / folder)
    assert cli("run", "jobs/read_pdf.toml", "--offline", "--yes").code == 0
    assert cli("report", "--html", "run.html").code == 0
    assert '"input":["pdfs/invoice.pdf","pdfs/lease.pdf"]' in held(tmp_path / "run.html")
