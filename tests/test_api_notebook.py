"""The notebook of docs/, and what a run shows in a cell; a real kernel where one is installed."""

import ast
import asyncio
import inspect
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import polars as pl
import pytest
from serving import served, stats

import pipeline as pp
from pipeline.console.screen import err

NOTEBOOK = Path(__file__).parent.parent / "docs" / "python.ipynb"
CELLS = [
    "".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"
]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


async def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Run a cell as a kernel does, in the loop that runs, and give the value of its last line."""
    *before, last = ast.parse(source).body
    parts: list[ast.AST] = [ast.Module(before, [])]
    parts.append(ast.Expression(last.value) if isinstance(last, ast.Expr) else ast.Module([last], []))
    for part in parts:
        mode = "eval" if isinstance(part, ast.Expression) else "exec"
        found = eval(compile(part, "cell", mode, ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)  # type: ignore[call-overload]
        if inspect.isawaitable(found):
            found = await found
    return found


def test_every_cell_of_the_notebook_runs_in_a_loop_that_runs(capsys: pytest.CaptureFixture[str]) -> None:
    values: list[Any] = []

    async def run_all() -> None:
        names: dict[str, Any] = {}
        for source in CELLS:
            values.append(await run_cell(source, names))

    asyncio.run(run_all())
    frames = [value for value in values if isinstance(value, pl.DataFrame)]
    assert [frame.height for frame in frames] == [3, 3] and frames[1]["status"].to_list() == ["ok"] * 3
    assert values[5].calls == 3 and values[6] == (1, 3)  # nothing once more; one row more is one call more
    failed, height = values[7]
    assert (failed.height, height) == (0, 4)
    assert "no job file at reviews.tmol" in capsys.readouterr().out


def test_the_notebook_is_kept_without_what_came_of_it() -> None:
    for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is displayed in a cell, in place of IPython: each drawing of an output that is drawn anew."""
    drawn: list[str] = []

    def display(*objects: Any, raw: bool = False, display_id: bool = False, **options: Any) -> Any:
        if raw:
            drawn.append(objects[0]["text/plain"])
        return SimpleNamespace(update=display) if display_id else None

    module = ModuleType("IPython.display")
    monkeypatch.setattr(module, "display", display, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(err, "is_jupyter", True)
    return drawn


def test_a_cell_shows_the_block_and_keeps_its_end(shown: list[str]) -> None:
    job = pp.load({"prompt": {"template": "{{ a }}"}, "model": {"name": "gemini-3.5-flash-lite"}}, name="cell")
    pp.run(job, pl.DataFrame({"a": ["x", "y"]}), offline=True)
    assert shown and "2/2 calls 100%" in shown[-1] and "2 of 2 rows" in shown[-1]
    count = len(shown)
    pp.run(job, pl.DataFrame({"a": ["x", "z"]}), offline=True, progress=False)
    assert len(shown) == count


# ---- a real kernel: `pip install nbclient ipykernel`


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    needed = ("nbclient", "nbformat", "ipykernel")
    client, nbformat, _ = (pytest.importorskip(name, reason="pip install nbclient ipykernel") for name in needed)
    with served(latency_s=0.25) as url:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", url)
        monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
        yield SimpleNamespace(client=client, nbformat=nbformat, url=url)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_a_real_kernel_runs_the_notebook(kernel: Any) -> None:
    notebook = kernel.nbformat.read(NOTEBOOK, as_version=4)
    kernel.client.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    outputs = [str(output) for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("3/3 calls 100%" in each for each in outputs) and not any("Traceback" in each for each in outputs)


CELL = """
import pipeline as pp, polars as pl
table = pl.DataFrame({"a": [f"NAME {number}" for number in range(40)]})
model = {"name": "gemini-3.5-flash-lite", "max_output_tokens": 50}
limits = {"rpm": 0, "tpm": 0, "concurrency": 4}
job = pp.load({"prompt": {"template": "{{ a }}"}, "model": model, "limits": limits}, name="NAME")
"""


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call", ["pp.run(job, table, yes=True)", "await pp.run_async(job, table, yes=True)"])
@pytest.mark.parametrize("end", ["interrupt", "kill"])
def test_a_cell_that_is_stopped_or_whose_kernel_is_killed_goes_on_when_it_is_run_again(
    kernel: Any, call: str, end: str
) -> None:
    from jupyter_client.manager import KernelManager

    def begin() -> tuple[Any, Any]:
        manager = KernelManager(kernel_name="python3")
        manager.start_kernel()
        client = manager.client()
        client.start_channels()
        client.wait_for_ready(timeout=60)
        client.execute_interactive(CELL.replace("NAME", "stopped"), timeout=60)
        return manager, client

    manager, client = begin()
    try:
        client.execute(call)
        while stats(kernel.url)["answered"] < 8:
            time.sleep(0.02)
        if end == "kill":
            client.stop_channels()
            manager.shutdown_kernel(now=True)
            manager, client = begin()
        else:
            manager.interrupt_kernel()
            ended = client.get_shell_msg(timeout=60)["content"]
            assert ended["ename"] in ("KeyboardInterrupt", "CancelledError")
            assert pp.read("stopped").status == "interrupted" and pp.read("stopped").calls < 40
        told = client.execute_interactive(call, timeout=60)
        assert told["content"]["status"] == "ok"
        kept = pp.read("stopped")
        assert kept.ok and kept.rows == 40
        assert 40 <= stats(kernel.url)["answered"] <= (44 if end == "kill" else 40)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
