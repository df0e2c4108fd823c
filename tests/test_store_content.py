"""Where an answer was sealed: identical prompts are found however far apart, after a crash, and without the index."""

import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from asking import MODEL
from stores import CENT, answer, killed, opened, paid, prompt, result

from pipeline.records import Status
from pipeline.store import content
from pipeline.store.content import Answered, ContentIndex
from pipeline.store.run import RunStore


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "notes"


def find(store: RunStore, *fingerprints: str) -> list[Answered | None]:
    async def look() -> list[Answered | None]:
        return [await store.sealed_reply(fingerprint) for fingerprint in fingerprints]

    return anyio.run(look)


def test_a_sealed_answer_is_found_with_its_row_and_its_price(directory: Path) -> None:
    with opened(directory) as store:
        answer(store, 0)
        answer(store, 7)
        anyio.run(store.seal)
        assert store.reply("content 7") is None
        one, other = find(store, "content 7", "content 8")
        assert one and other is None
        assert (one.row, one.reply.text, one.reply.status, one.reply.cost_usd) == (7, "answer 7", "ok", CENT)
        assert (one.reply.usage, one.reply.model) == (paid().usage, paid().model)


def test_the_pieces_of_a_document_are_found_too(directory: Path) -> None:
    with opened(directory) as store:
        store.append_call(prompt(3, "a piece", step="map", chunks=2), MODEL, paid("a part"))
        store.append_call(prompt(3, "the whole", step="reduce", level=1), MODEL, paid("answer 3"))
        store.append_result(result(3))
        anyio.run(store.seal)
        texts = [found.reply.text if found else None for found in find(store, "a piece", "the whole")]
        assert texts == ["a part", "answer 3"]


@pytest.mark.parametrize("status", ["truncated", "blocked"])
def test_only_whole_answers_are_found(directory: Path, status: Status) -> None:
    finish = {"truncated": "MAX_TOKENS", "blocked": "SAFETY"}[status]
    with opened(directory) as store:
        store.append_call(prompt(0), MODEL, paid(raw=b'{"candidates":[{"finishReason":"' + finish.encode() + b'"}]}'))
        store.append_result(result(0, status, "truncated"))
        anyio.run(store.seal)
        assert find(store, "content 0") == [None]


@pytest.mark.parametrize("left", ["all", "nothing", "garbage"])
def test_every_answer_is_found_by_the_next_start(directory: Path, left: str) -> None:
    for part in range(content.OPEN_PARTS + 3):
        with killed(directory) as store:
            answer(store, 2 * part)
            anyio.run(store.seal)
            answer(store, 2 * part + 1)
    rows = 2 * (content.OPEN_PARTS + 3)
    if left == "nothing":
        (directory / content.NAME).unlink()
    elif left == "garbage":
        (directory / content.NAME).write_bytes(b"no database " * 1000)
    with opened(directory) as store:
        for _ in range(2):
            found = find(store, *(f"content {row}" for row in range(rows)))
            assert [one.reply.text if one else None for one in found] == [f"answer {row}" for row in range(rows)]


def test_an_answer_is_found_at_every_moment_of_a_seal(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    catch_up = ContentIndex.catch_up

    async def seal(store: RunStore) -> None:
        def looking(index: ContentIndex) -> None:
            seen.append(store.reply("content 0") is not None)
            catch_up(index)

        monkeypatch.setattr(ContentIndex, "catch_up", looking)
        await store.seal()
        assert store.reply("content 0") is None and await store.sealed_reply("content 0")

    with opened(directory) as store:
        answer(store, 0)
        anyio.run(seal, store)
    assert seen == [True]


def break_index(directory: Path) -> None:
    with closing(sqlite3.connect(directory / "content.sqlite")) as other:
        other.execute("DROP TABLE content")


def test_an_index_that_breaks_is_built_again_and_the_second_time_by_the_next_start(directory: Path) -> None:
    with opened(directory) as store:
        answer(store, 0)
        anyio.run(store.seal)
        break_index(directory)
        assert all(find(store, "content 0", "content 0"))
        break_index(directory)
        assert find(store, "content 0", "content 0") == [None, None]
        answer(store, 1)
        anyio.run(store.seal)
    with opened(directory) as store:
        assert all(find(store, "content 0", "content 1"))


def test_what_was_in_a_part_that_is_gone_is_bought_again_and_found_again(directory: Path) -> None:
    with opened(directory) as store:
        answer(store, 0)
        anyio.run(store.seal)
        for kind in ("calls", "results"):
            (directory / kind / "part-000001.parquet").unlink()
        assert find(store, "content 0") == [None]
        answer(store, 0)
        anyio.run(store.seal)
        assert all(find(store, "content 0"))


@pytest.mark.case("D2")
@pytest.mark.parametrize("how", ["empty", "no database", "cut", "other layout", "a directory"])
def test_an_index_that_is_half_made_or_damaged_is_built_again(directory: Path, how: str) -> None:
    with opened(directory) as store:
        answer(store, 0)
    path = directory / "content.sqlite"
    whole = path.read_bytes()
    path.unlink()
    if how == "a directory":
        path.mkdir()
    elif how == "other layout":
        with closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE content (what TEXT)")
    else:
        path.write_bytes({"empty": b"", "no database": b"no database " * 500, "cut": whole[:5000]}[how])
    for _ in range(2):
        with opened(directory) as store:
            found = anyio.run(store.sealed_reply, "content 0")
    assert found is not None and found.reply.text == "answer 0"


def test_an_index_that_is_not_there_is_made_when_it_is_asked(directory: Path) -> None:
    with opened(directory) as store:
        for row in range(3):
            answer(store, row)
            anyio.run(store.seal)
    (directory / content.NAME).unlink()
    with opened(directory):
        pass
    with closing(ContentIndex(directory)) as index:
        assert index.is_empty, "nobody asked"
    for _ in range(2):
        with closing(ContentIndex(directory, read_only=True)) as index:
            assert anyio.run(index.find, "content 1") and anyio.run(index.find, "content 7") is None
    with opened(directory) as store:
        one, other = find(store, "content 2", "content 7")
        assert one and one.row == 2 and other is None
    with opened(directory) as store:
        answer(store, 5)
        anyio.run(store.seal)
        assert all(find(store, "content 0", "content 5"))
    (directory / content.NAME).unlink()
    with opened(directory) as store:
        answer(store, 6)
        anyio.run(store.seal)
        assert all(find(store, "content 0", "content 6")), "a seal that comes first takes in what came before it"
