"""A disk that fails, or a kill, at the Nth write, sync, rename, unlink, create, lock of a run and of the user's state.

Afterwards the same command is run again: every row once, nothing that was kept is bought again, no state file is in the
way, and what the failed run said is right.
"""

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from faultpoints import FAULTS, Fault, Ran, Runs, compiled
from serving import served, stats
from test_kill import CHUNKED, IN_FLIGHT, summarize_job

ROWS = 24
SEVERAL_CAPS = "[budget]\nmax_usd = 5\nmax_usd_per_day = 5\nmax_usd_per_month = 5\n[cache]\n"


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    yield from warmed(tmp_path_factory, "hasty")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    yield from warmed(tmp_path_factory)


def warmed(tmp_path_factory: pytest.TempPathFactory, setup: str = "") -> Iterator[Runs]:
    library = compiled(tmp_path_factory.mktemp("shim"))
    if library is None:
        if os.environ.get("CI"):
            pytest.fail("no C compiler")
        pytest.skip("no C compiler")
    warm = Runs(library, setup)
    yield warm
    warm.close()


class Place:
    """A folder with a job, brought back to how it was `kept` before each fault."""

    def __init__(self, path: Path, runs: Runs, url: str) -> None:
        self.path, self._runs, self.url = path / "here", runs, url
        self._kept = path / "kept"
        self.path.mkdir()

    def keep(self) -> None:
        """As it is now, so it shall be before each fault."""
        shutil.copytree(self.path, self._kept)

    def restore(self) -> None:
        shutil.rmtree(self.path)
        shutil.copytree(self._kept, self.path)

    def run(self, *arguments: str, fault: Fault | None = None, url: str = "") -> tuple[Ran, int]:
        """How it ended, and how many answers the service delivered meanwhile."""
        before = stats(self.url)["answered"]
        ran = self._runs.run(self.path, url or self.url, *arguments, fault=fault)
        return ran, stats(self.url)["answered"] - before


RUN = ("run", "job.toml", "--yes", "--json")
EXPORT = ("export", "job", "--to", "output.parquet", "--json")
PILOT = ("estimate", "job.toml", "--pilot", "6", "--yes", "--json")


def prepare(place: Place, scenario: str) -> tuple[tuple[str, ...], tuple[str, ...], int | None]:
    """Lay out what the scenario starts from; returns its command, the one to go on with, and the answers it takes,
    None: as many as the command does where nothing fails."""
    summarize_job(
        place.path, ROWS, (CHUNKED if scenario == "map-reduce" else "") + SEVERAL_CAPS * (scenario == "single")
    )
    if scenario.startswith("batch"):
        job = place.path / "job.toml"
        whole = "\n[budget]\nmax_usd = 5\n" if scenario == "batch" else CHUNKED
        summarize_job(place.path, ROWS, whole)
        job.write_text(job.read_text().replace("[model]\n", '[model]\nlane = "batch"\n'))
    if scenario in ("interim", "single", "map-reduce", "batch", "batch, map-reduce"):
        place.keep()
        return RUN, RUN, None
    if scenario == "pilot":
        place.keep()
        return PILOT, RUN, ROWS
    if scenario == "retry":
        with served(faults="max_tokens_empty*5") as odd:
            ran, _ = place.run(*RUN, url=odd)
        assert (ran.json["ok"], ran.json["truncated"]) == (ROWS - 5, 5), ran.err
        place.keep()
        return (*RUN, "--retry", "truncated"), (*RUN, "--retry", "truncated"), 5
    ran, _ = place.run(*RUN)
    assert ran.json["ok"] == ROWS, ran.err
    if scenario.startswith("export"):
        (place.path / "output.parquet").unlink()
    place.keep()
    if scenario == "export by hand":
        return EXPORT, RUN, 0
    return ((*RUN, "--fresh"), RUN, ROWS) if scenario == "fresh" else (RUN, RUN, 0)


def check_failed(ran: Ran, answered: int) -> None:
    """What a run says that failed or was killed."""
    assert ran.code in (-9, 0, 1, 2, 3)
    assert "Traceback" not in ran.err and "a bug" not in ran.err
    if ran.code in (2, 3):
        assert "error: " in ran.err or "stopped: " in ran.err
    if ran.code == 2:
        assert not answered
    if answered and ran.code != -9:
        assert not re.search("nothing was (sent|spent|bought)", ran.err, re.IGNORECASE)


def check_whole(place: Place, ran: Ran) -> None:
    """Every row once, in the output and in what is sealed; no file in the way."""
    assert ran.code == 0
    assert not re.search(r"damaged|set aside|cannot be used|missing", ran.err)
    output = pl.read_parquet(place.path / "output.parquet")
    assert output["id"].to_list() == [f"r{number}" for number in range(ROWS)]
    assert set(output["status"]) == {"ok"}
    results = pl.concat([pl.read_parquet(path) for path in (place.path / "runs/job/results").glob("*.parquet")])
    assert sorted(results.filter(status="ok")["row"]) == list(range(ROWS))
    bought = [*(place.path / "runs/job/calls").glob("*"), *(place.path / "runs/job/batched").glob("*")]
    calls = pl.concat([pl.read_parquet(path) for path in bought])
    assert calls.filter("paid", status="ok")["fingerprint"].is_unique().all()
    assert not [left for among in ("runs/job/*/.*", "runs/job/.*", ".*") for left in place.path.glob(among)]


def fail_everywhere(runs: Runs, path: Path, scenario: str, count: int, first: int = 0) -> Counter[str]:
    """So many places, spread evenly over the run, the faults in turn from the `first`; returns how often each fault
    ended with which exit code."""
    codes: Counter[str] = Counter()
    failures: list[str] = []
    latency_s = 0.05 * (scenario == "interim")
    with served(batch=True, batch_pending_s=0.05, batch_run_s=0.05, batch_spread=1, latency_s=latency_s) as url:
        place = Place(path, runs, url)
        command, then, takes = prepare(place, scenario)
        place.restore()
        whole, answered = place.run(*command, fault=Fault(0))
        calls = answered if takes is None else takes
        assert whole.code == 0 and whole.places > 20, whole
        for number in range(count):
            kind = list(FAULTS)[(first + number) % len(FAULTS)]
            at = 1 + (number * whole.places) // count
            place.restore()
            ran, answered = place.run(*command, fault=FAULTS[kind]._replace(at=at))
            codes[f"{kind.strip()} {'ended' if ran.struck else 'came not: ended'} with {ran.code}"] += 1
            told = [
                f"{scenario}, {kind.strip()} at place {at} of {whole.places}: {ran.code}, {answered} answered",
                ran.err,
            ]
            try:
                check_failed(ran, answered)
                for _ in range(3):
                    again, more = place.run(*then)
                    answered += more
                    told.append(f"then {again.code}, {answered} answered\n{again.err}")
                    if again.code == 0:
                        break
                check_whole(place, again)
                assert calls <= answered + ROWS * (scenario == "fresh")
                assert answered <= calls + IN_FLIGHT * bool(ran.struck)
            except AssertionError as error:
                failures.append("\n".join([*told, str(error)[:600]]))
    assert not failures, f"{len(failures)} of {count}\n\n" + "\n\n".join(failures)
    return codes


SCENARIOS = ["single", "map-reduce", "pilot", "retry", "fresh", "export", "batch", "batch, map-reduce"]


@pytest.mark.case("D2", "D11")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_whatever_the_disk_does_every_row_comes_out_once(runs: Runs, tmp_path: Path, scenario: str) -> None:
    """Each kind of fault twice; in number they are struck by the long tests below."""
    fail_everywhere(runs, tmp_path, scenario, 3, first=SCENARIOS.index(scenario) * 3)


@pytest.mark.case("D2", "D11")
def test_whatever_the_disk_does_while_parts_and_output_are_written(hasty: Runs, tmp_path: Path) -> None:
    fail_everywhere(hasty, tmp_path, "interim", 3)


@pytest.mark.long
@pytest.mark.parametrize(("scenario", "count"), [("interim", 400), ("export by hand", 100)])
def test_whatever_the_disk_does_at_many_places_while_parts_and_output_are_written(
    hasty: Runs, tmp_path: Path, scenario: str, count: int
) -> None:
    codes = fail_everywhere(hasty, tmp_path, scenario, count)
    print(scenario, dict(codes))


@pytest.mark.long
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_whatever_the_disk_does_at_200_places(runs: Runs, tmp_path: Path, scenario: str) -> None:
    codes = fail_everywhere(runs, tmp_path, scenario, 200)
    assert codes.total() == 200 and any("kill ended with -9" in code for code in codes)
    print(scenario, dict(codes))
