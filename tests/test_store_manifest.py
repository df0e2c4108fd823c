import errno
import fcntl
import json
import os
import re
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import pytest
from stores import answer, manifest, opened

from pipeline import machine, report
from pipeline.errors import RunStateError
from pipeline.store.manifest import SHARDED_VERSION, Lock, Manifest, differences, read, write
from pipeline.store.notes import last_output
from pipeline.store.place import locked


def changed(**sections: Any) -> list[str]:
    old = {"model": {"name": "flash", "temperature": 0.5}, "chunk": {"max_tokens": 100}, "prompt": {"template": "Say"}}
    return differences(manifest(identity=old), manifest(identity={**old, **sections}))


# ---- reading and writing


def test_a_manifest_is_read_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    assert read(path) is None
    written = manifest(versions={"polars": "2"}, job="整夜")
    write(path, written)
    assert read(path) == written
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["open", "fsync", "replace"])
def test_a_manifest_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "manifest.json"

    def crash(*_: Any, **__: Any) -> None:
        raise InterruptedError(step)

    with monkeypatch.context() as patched, pytest.raises(InterruptedError):
        patched.setattr(os if step == "fsync" else Path, step, crash)
        write(path, manifest())
    assert read(path) is None
    write(path, manifest())
    assert read(path) == manifest()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"{}",
        b"\xff\xfe",
        orjson.dumps({**asdict(manifest()), "version": "new", "unheard_of": 1}),
        orjson.dumps({name: value for name, value in asdict(manifest()).items() if name != "source"}),
    ],
)
def test_a_damaged_manifest_is_refused_with_its_place(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(RunStateError, match=re.escape(str(path))) as caught:
        read(path)
    assert "--fresh" in caught.value.hint


def test_a_manifest_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(RunStateError, match="cannot read") as caught:
        read(tmp_path / "manifest.json")
    assert "same command again" in caught.value.hint, "a disk that is away for a moment is no reason to buy all anew"


@pytest.mark.parametrize("more", [{}, {"unheard_of": 1}])
def test_a_newer_layout_is_refused_before_anything_else_of_it_is_read(tmp_path: Path, more: dict[str, int]) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(orjson.dumps({**asdict(manifest()), "version": SHARDED_VERSION + 1, **more}))
    newer = f"newer prompt-pipeline .layout {SHARDED_VERSION + 1}, this one knows"
    with pytest.raises(RunStateError, match=newer) as caught:
        read(path)
    assert "upgrade" in caught.value.hint and "--fresh" in caught.value.hint


# ---- what differs


def test_the_same_job_and_input_differ_in_nothing_after_a_round_trip(tmp_path: Path) -> None:
    write(tmp_path / "manifest.json", manifest())
    known = read(tmp_path / "manifest.json")
    assert isinstance(known, Manifest)
    assert differences(known, manifest()) == []


def test_what_cannot_change_an_answer_is_no_difference() -> None:
    other = manifest(
        job_path="elsewhere.toml", source_path="copy.csv", output="other.parquet", created_at="", prices_dated=""
    )
    assert differences(manifest(), other) == []


def test_each_changed_setting_is_named_by_section_and_key() -> None:
    assert changed(model={"name": "pro", "temperature": 0.5, "top_k": 4}) == [
        "[model] name: flash → pro",
        "[model] top_k: unset → 4",
    ]
    assert changed(chunk=None) == ["[chunk] max_tokens: 100 → unset"]
    assert changed(reduce={"max_input_tokens": 8}) == ["[reduce] max_input_tokens: unset → 8"]
    assert changed(model={"name": "flash", "temperature": 0}, chunk={"max_tokens": 200}) == [
        "[chunk] max_tokens: 100 → 200",
        "[model] temperature: 0.5 → 0",
    ]


def test_the_text_of_a_prompt_is_not_shown_however_short() -> None:
    assert changed(prompt={"template": "Tell", "system": "Sing"}) == ["[prompt] system", "[prompt] template"]
    assert changed(reduce={"template": "Merge"}) == ["[reduce] template"]


def test_a_long_value_is_not_shown() -> None:
    assert changed(model={"name": "flash" * 20, "temperature": 0.5}) == ["[model] name"]


def test_a_changed_input_is_named_by_its_path() -> None:
    [line] = differences(manifest(), manifest(source="s1", source_path="data/notes.csv"))
    assert "data/notes.csv is not what it was" in line


# ---- the lock


def test_a_held_lock_is_refused_with_its_holder_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not Lock.held(path)
    first = Lock(path)
    assert Lock.held(path)
    with pytest.raises(RunStateError) as caught:
        Lock(path)
    assert f"{tmp_path} is in use by process {os.getpid()} on " in caught.value.message
    assert caught.value.hint == f"`pipeline report {tmp_path}` shows its progress"
    first.release()
    assert not Lock.held(path)
    Lock(path).release()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.case("D11")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_that_locks_nothing_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(fd: object, how: int) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "lock"
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", refuse)
        with pytest.raises(RunStateError) as caught:
            Lock(path)
        assert f"{path} cannot be locked: {os.strerror(number)}" in caught.value.message
        assert "disk of this machine" in caught.value.hint
        assert not Lock.held(path)
    Lock(path).release()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EIO])
def test_an_output_on_a_disk_that_locks_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(fd: object, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = tmp_path / "out.csv"
    with nullcontext() if number != errno.EIO else pytest.raises(OSError), locked(path, path):
        path.touch()
    assert path.exists() == (number != errno.EIO)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EIO])
def test_a_directory_whose_disk_knows_no_sync_is_none_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with nullcontext() if number != errno.EIO else pytest.raises(OSError):
        machine.sync_directory(tmp_path)


@pytest.mark.case("D11")
def test_a_holder_that_cannot_write_its_name_holds_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        held = Lock(tmp_path / "lock")
    assert Lock.held(tmp_path / "lock")
    held.release()
    held.release()
    assert not Lock.held(tmp_path / "lock")


def test_a_lock_that_is_looked_at_can_still_be_taken(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    Lock(path).release()
    assert not Lock.held(path)
    second = Lock(path)
    assert Lock.held(path)
    second.release()


def test_the_name_of_an_earlier_holder_does_not_stay(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("process 1234567890 on a-host-with-a-very-long-name " * 3)
    lock = Lock(path)
    assert path.read_text().startswith(f"process {os.getpid()} on ")
    assert "1234567890" not in path.read_text()
    lock.release()


@pytest.mark.case("D2")
@pytest.mark.parametrize(
    "name",
    ["manifest.json", "journal-000001.jsonl", "parts.jsonl", "run.log", "content.sqlite", "output.json"]
    + [f"{kind}/part-000001.parquet" for kind in ("calls", "results")],
)
@pytest.mark.parametrize("what", ["a pipe", "a link that leads nowhere"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, name: str, what: str) -> None:
    with opened(tmp_path / "run") as store:
        answer(store, 0)
    place = tmp_path / "run" / name
    place.unlink(missing_ok=True)
    if what == "a pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunStateError, match=f"{name} is not a file"), opened(tmp_path / "run"):
        pass
    with pytest.raises(RunStateError, match=f"{name} is not a file"):
        report.summarize(tmp_path / "run")
    assert last_output(tmp_path / "run") is None


@pytest.mark.parametrize("note", ["{}", "[1]", '[{"path": "out.csv"}]', '[{"path": 1, "size": "x"}]', "[{]", "\\xff"])
def test_a_note_of_outputs_that_is_none_says_nothing(tmp_path: Path, note: str) -> None:
    whole = {"size": 1, "mtime_ns": 1, "digest": "", "rows": 1, "finished": 1}
    (tmp_path / "output.json").write_text(json.dumps([{"path": "/out.csv", **whole}]))
    assert last_output(tmp_path) == "/out.csv"
    for damaged in (note, json.dumps([{"path": 1, **whole}])):
        (tmp_path / "output.json").write_text(damaged)
        assert last_output(tmp_path) is None
