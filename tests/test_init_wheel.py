"""A newcomer with the wheel alone: what `pipeline init` prints is typed into a shell as it stands, and nothing else."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import paper
import polars as pl
import pytest

pytestmark = pytest.mark.long

_MOST_S = 60.0
_MIXED = ("jobs.md", "keys.md", "lanes.md")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an empty environment in which the wheel was installed."""
    root, place = Path(__file__).parent.parent, tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(place), str(root))
    subprocess.run(pip, check=True)
    (wheel,) = place.glob("*.whl")
    subprocess.run((sys.executable, "-m", "venv", str(place / "venv")), check=True)
    subprocess.run((str(place / "venv" / "bin" / "pip"), "install", "-q", f"{wheel}[documents]"), check=True)
    return place / "venv" / "bin"


@pytest.fixture(scope="module")
def environment(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """What a shell has in which the key was filled in, and an emulator is the service."""
    place = tmp_path_factory.mktemp("home")
    env = {"PATH": f"{installed}:{os.environ['PATH']}", "HOME": str(place), "LANG": "C.UTF-8"}
    with subprocess.Popen(
        ["pipeline", "emulate", "--port", "0"], stdout=subprocess.PIPE, text=True, env=env
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        yield {**env, "GOOGLE_GEMINI_BASE_URL": url, "GEMINI_API_KEY": "rehearsal"}
        process.terminate()


def chinese(here: Path, root: Path) -> str:
    rows = "".join(f"A{n:02},第 {n} 条评论：用了一个月，效果还可以，物流很快。,{n % 5}\n" for n in range(6))
    (here / "评论 表.csv").write_bytes(f"编号,评论 内容,评分\n{rows}".encode("gb18030"))
    return "评论 表.csv"


def long_documents(here: Path, root: Path) -> str:
    frame = pl.read_parquet(root / "sample_data" / "licences.parquet").head(2)
    frame.with_columns(pl.col("body").repeat_by(5).list.join("\n\n")).write_parquet(here / "documents.parquet")
    return "documents.parquet"


def mixed(here: Path, root: Path) -> str:
    (here / "documents").mkdir()
    for name in _MIXED:
        shutil.copy(root / "docs" / name, here / "documents")
    (here / "documents" / "letter.docx").write_bytes(paper.docx(paper.paragraph("A letter of a few words.")))
    (here / "documents" / "report.pdf").write_bytes(paper.pdf("A page of a few words."))
    (here / "documents" / "scan.pdf").write_bytes(paper.pdf(""))
    (here / "documents" / "说明.txt").write_text("这是一份说明，讲怎样安装和使用。", "gb18030")
    shutil.copy(root / "sample_data" / "images" / "bars.png", here / "documents")
    return "documents"


def images(here: Path, root: Path) -> str:
    shutil.copytree(root / "sample_data" / "images", here / "photos")
    return "photos/"


@pytest.mark.parametrize("make", [chinese, long_documents, mixed, images])
def test_what_is_printed_is_typed_and_goes(
    tmp_path: Path, root: Path, environment: Mapping[str, str], make: Callable[[Path, Path], str]
) -> None:
    env = {**environment, "HOME": str(tmp_path / "home")}  # each is another's first day: no minute's quota is shared

    def typed(line: str) -> str:
        ran = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    start = time.perf_counter()
    told = typed(f"pipeline init '{make(tmp_path, root)}' </dev/null")
    for line in told.partition("\nnext:\n")[2].splitlines():
        typed(line)
    took_s = time.perf_counter() - start
    (output,) = (tmp_path / "results").iterdir()
    frame = pl.read_parquet(output) if output.suffix == ".parquet" else pl.read_csv(output)
    assert set(frame["status"]) == {"ok"}
    print(f"{make.__name__}: {frame.height} rows in {took_s:.0f} s")
    assert took_s < _MOST_S
