from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from tempfile import gettempdir

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tables import refused, refused_rows

from pipeline.source import open_source, unique

hashes = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from([0, 2**56, 2**63, 2**64 - 1]))


@pytest.mark.case("D17")
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(hashes, max_size=9), max_size=9), st.integers(1, 6))
def test_what_repeats_is_found_however_it_is_spilled(
    monkeypatch: pytest.MonkeyPatch, parts: list[list[int]], run: int
) -> None:
    monkeypatch.setattr(unique, "_RUN", run)
    found = unique.repeats(pl.Series(part, dtype=pl.UInt64) for part in parts)
    expected = {value for value, count in Counter(chain.from_iterable(parts)).items() if count > 1}
    assert (found.number, set(found.hashes.to_list())) == (len(expected), expected)


@pytest.mark.case("D17")
def test_repeated_ids_of_a_table_above_one_run_are_named_with_their_rows(tmp_path: Path) -> None:
    ids = [*range(300_000), 299_000, 7, 7]
    path = str(tmp_path / "a.parquet")
    pl.DataFrame({"id": ids}).write_parquet(path)
    said = "id is not unique: 2 values repeat (first: 7, rows 7 and 300001; 299000, rows 299000 and 300000)"
    assert refused_rows(path, id="id").message == said
    assert open_source(path, id="id", where="id < 299000 AND id <> 7").count() == 298_999


@pytest.mark.case("D17")
def test_values_that_only_share_a_hash_do_not_repeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(tmp_path / "a.parquet")
    pl.DataFrame({"id": range(5000)}).write_parquet(path)
    monkeypatch.setattr(pl.Series, "hash", lambda self: (self.cast(pl.Int64) % 100).cast(pl.UInt64))
    assert open_source(path, id="id").count() == 5000


@pytest.mark.case("D17")
def test_a_full_disk_is_named_with_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self) -> None:
            raise OSError(28, "No space left on device")

    def parts() -> Iterator[pl.Series]:
        yield from (pl.Series([number], dtype=pl.UInt64) for number in range(3))

    monkeypatch.setattr(unique, "_RUN", 1)
    monkeypatch.setattr("tempfile.TemporaryFile", Full)
    error = refused(lambda: unique.repeats(parts()))
    assert f"No space left on device in {gettempdir()}" in error.message and "TMPDIR" in error.hint
