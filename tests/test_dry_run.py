"""`run --dry-run` says what the run would start with: the same rows, calls and notices, after a kill and an edit."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
from asking import opening_of
from commands import UNLIMITED, Ran, small_job
from halfway import Halfway, run_watched, session
from serving import served
from sessions import quiet

from pipeline import estimating
from pipeline.errors import JobError
from pipeline.job import load
from pipeline.plan import Plan
from pipeline.prompts import Prompt
from pipeline.records import Failure, Reply, Usage
from pipeline.run import prepare, run
from pipeline.run.engine import Monitor
from pipeline.targets import Target

DIRECTORY, KILLED = Path("runs/small"), Path("killed")


class Cut(Halfway):
    """Answers so many prompts, all of them cut short."""

    async def generate(self, prompt: Prompt, target: Target) -> Reply | Failure:
        await super().generate(prompt, target)
        usage, ended = Usage(5, output_tokens=50), {"finish_reason": "MAX_TOKENS", "error_kind": "truncated"}
        return Reply("yes", "truncated", usage=usage, raw=b"{}", endpoint=target.endpoint, **ended)  # type: ignore[arg-type]


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with served() as address:
        monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", address)
        monkeypatch.setenv("GEMINI_API_KEY", "AQ.test")
        yield address


@pytest.fixture
def killed(here: Path, url: str) -> None:
    """A run of which three rows are done, in the journal alone, and three requests were in flight."""

    def look(monitor: Monitor) -> bool:
        if monitor.done == 3:
            shutil.copytree(DIRECTORY, KILLED)
        return monitor.done == 3

    run_watched(session(here), Cut(3), look)
    shutil.rmtree(DIRECTORY)
    KILLED.rename(DIRECTORY)
    (here / "out.parquet").unlink()


def foreseen(prepared: prepare.Session) -> Plan:
    """What a dry run says, and what the run then starts with: one of the two, as they have to be the same."""
    said, _ = anyio.run(estimating.foreseen, prepared)
    begun: list[Plan] = []

    def confirm(plan: Plan, continued: bool, session: prepare.Session) -> None:
        begun.append(plan)
        raise JobError("not agreed to")

    with pytest.raises(JobError, match="not agreed to"):
        anyio.run(run.run, prepared, confirm, quiet, opening_of(Halfway(0)))
    assert (said.load.prompts, said.documents, said.notices) == (
        begun[0].load.prompts,
        begun[0].documents,
        begun[0].notices,
    )
    return said


@pytest.mark.parametrize(
    ("options", "calls"), [({}, 3), ({"retry": frozenset({"truncated"})}, 6), ({"fresh": True}, 6)]
)
def test_after_a_kill_it_counts_what_the_journal_has(
    here: Path, killed: None, options: dict[str, object], calls: int
) -> None:
    assert foreseen(session(here, **options)).load.prompts == calls


def test_with_set_it_counts_the_rows_of_the_journal_that_are_redone(here: Path, killed: None) -> None:
    path, changes = small_job(here, UNLIMITED), {"max_output_tokens": 900}
    options = prepare.Options(retry=frozenset({"truncated"}), changes='{"max_output_tokens": 900}')
    redo = load(path, {f"model.{key}": value for key, value in changes.items()})
    assert foreseen(prepare.prepare(load(path), options, redo)).load.prompts == 3


def test_the_budget_is_checked_as_the_run_does_it(here: Path, killed: None) -> None:
    """What was in flight at the kill may have been billed: that counts, after an edit too."""
    assert run_watched(session(here), Halfway(9), lambda monitor: True) == 1
    job = small_job(here, f"{UNLIMITED}\n[budget]\nmax_usd = 0.0009", template="Sing {{ word }}")
    said = foreseen(prepare.prepare(load(job), prepare.Options()))
    assert said.load.prompts == 6 and any("reach [budget] max_usd" in notice for notice in said.notices)


def test_that_a_cluster_was_not_asked_for_its_cpus_is_said(
    here: Path, cli: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, said = small_job(here, UNLIMITED), "the cluster was not asked for its CPUs"
    for address, flags, is_said in (("", (), False), ("head:6379", (), True), ("head:6379", ("--workers", 2), False)):
        monkeypatch.setenv("RAY_ADDRESS", address or "local")
        ran = cli("run", job, "--offline", "--dry-run", "--on", "ray", *flags)
        assert ran.code == 0 and (said in " ".join(ran.err.split())) == is_said


def test_where_nothing_is_left_it_says_so(here: Path, cli: Callable[..., Ran]) -> None:
    job = small_job(here, UNLIMITED)
    assert "without `--dry-run` the same command does it" in cli("run", job, "--offline", "--dry-run").err
    assert cli("run", job, "--offline").code == 0
    said = cli("run", job, "--offline", "--dry-run").err
    assert "nothing is left to be done" in said and "does it" not in said
    assert "does it" in cli("run", job, "--offline", "--dry-run", "--fresh").err
