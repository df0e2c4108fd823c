"""Object storage: what each kind of store does with the puts that a run rests on."""

import os
import stat
import sys
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from storage import in_folder, in_memory

from pipeline.errors import JobError, RunStateError
from pipeline.objects import Away, Objects, Tag, opened
from pipeline.urls import is_url


@pytest.fixture(params=["memory", "folder", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    if request.param == "memory":
        return in_memory()
    if request.param == "folder":
        return in_folder(tmp_path / "store")
    return opened(f"{request.getfixturevalue('s3')}/runs of {request.node.name}/作业")


def test_what_was_put_is_there(objects: Objects, tmp_path: Path) -> None:
    objects.put("a/x", b"one")
    objects.put("a/x", b"two")
    (tmp_path / "big").write_bytes(os.urandom(11 * 2**20))
    below = objects.below("shards/00001")
    below.put("calls/part-000001.parquet", tmp_path / "big")
    assert objects.get("a/x") == b"two"
    assert objects.get("a/none") is None
    assert below.fetch("calls/part-000001.parquet", tmp_path / "deep" / "again")
    assert not below.fetch("calls/none", tmp_path / "none")
    assert (tmp_path / "deep/again").read_bytes() == (tmp_path / "big").read_bytes()
    assert stat.S_IMODE((tmp_path / "deep/again").stat().st_mode) == 0o600
    assert not list(tmp_path.glob("**/.*.tmp"))


def test_objects_are_listed_from_where_one_stands(objects: Objects) -> None:
    for name in ("lead.json", "shards/00001/input", "shards/00001/life/claim", "shards/000010/claim", "other"):
        objects.put(name, name.encode())
    names = [entry.name for entry in objects.entries()]
    assert names == sorted(
        ["lead.json", "shards/00001/input", "shards/00001/life/claim", "shards/000010/claim", "other"]
    )
    assert [(entry.name, entry.size) for entry in objects.entries("shards/00001")] == [
        ("shards/00001/input", 18),
        ("shards/00001/life/claim", 23),
    ]
    assert [entry.name for entry in objects.below("shards/00001").entries()] == ["input", "life/claim"]
    assert objects.entries("nothing") == []


def test_a_list_that_broke_off_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore
    from obstore.exceptions import GenericError

    objects, listed, left = in_memory(), obstore.list, [2]
    objects.put("one", b"")

    def broken(*arguments: Any, **settings: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise GenericError("Generic S3 error: Error getting list response body: HTTP error")
        return listed(*arguments, **settings)

    monkeypatch.setattr(obstore, "list", broken)
    assert [entry.name for entry in objects.entries()] == ["one"]
    left[0] = 9
    with pytest.raises(Away):
        objects.entries()
    assert left[0] == 6


def test_one_of_two_creates_an_object_and_knows_it_when_it_asks_again(objects: Objects) -> None:
    assert objects.create("claim", b"worker 1")
    assert not objects.create("claim", b"worker 2")
    assert objects.create("claim", b"worker 1"), "as where the answer to the first was lost"
    assert objects.get("claim") == b"worker 1"


def test_one_of_two_replaces_a_version(objects: Objects) -> None:
    objects.create("lead.json", b"first")
    found = objects.get_tagged("lead.json")
    assert found
    second = objects.replace("lead.json", b"second", found[1])
    assert second
    assert objects.replace("lead.json", b"third", found[1]) is None
    assert objects.replace("lead.json", b"second", found[1]) == second, "as where the answer to it was lost"
    assert objects.replace("lead.json", b"third", second)
    objects.delete(["lead.json"])
    assert objects.replace("lead.json", b"fourth", second) is None
    assert objects.get("lead.json") is None


def test_what_is_not_there_can_be_deleted_beside_what_is(objects: Objects) -> None:
    for name in ("a", "b", "c"):
        objects.put(name, b"1")
    objects.delete(["none", "a", "none2", "c"])
    objects.delete([])
    assert [entry.name for entry in objects.entries()] == ["b"]


def test_an_object_is_copied_within_its_store(objects: Objects) -> None:
    one, other = objects.below("one"), objects.below("other")
    one.put("part", b"content")
    assert one.copy("part", other, "part")
    assert not one.copy("none", other, "part")
    assert other.get("part") == b"content"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("s3://bucket/runs", True),
        ("gs://bucket", True),
        ("az://container/runs", True),
        ("file:///mnt/runs", True),
        ("file://host/runs", False),
        ("runs", False),
        ("/mnt/s3://x", False),
        ("https://host/x", False),
    ],
)
def test_what_is_an_address(path: str, expected: bool) -> None:
    assert is_url(path) is expected


def test_a_folder_that_is_made_is_private(tmp_path: Path) -> None:
    in_folder(tmp_path / "new").put("a", b"1")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_a_wrong_address_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("s3://", "gs:///x", "ftp://x/y"):
        with pytest.raises(JobError, match=url.partition(":")[0]):
            opened(url)
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(JobError, match="obstore, which is not installed") as refused:
        opened("s3://bucket/runs")
    assert "obstore" in refused.value.hint or "[objects]" in refused.value.hint


def test_a_bucket_that_is_not_there_is_told(s3: str) -> None:
    objects = opened("s3://nobody-has-it/runs")
    asked = (
        lambda: objects.put("x", b"1"),
        lambda: objects.create("x", b"1"),
        lambda: objects.get("x"),
        lambda: objects.entries(),
    )
    for ask in asked:
        with pytest.raises(RunStateError, match=r"s3://nobody-has-it/runs.*NoSuchBucket") as refused:
            ask()
        assert not isinstance(refused.value, Away)
        assert "AWS_ACCESS_KEY_ID" in refused.value.hint


def test_a_store_that_is_away_is_told_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://tester:verysecret@127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "verysecret")
    objects = opened("s3://bucket/runs")
    with pytest.raises(Away, match="s3://bucket/runs/claim cannot be reached") as refused:
        objects.create("claim", b"1")
    assert "verysecret" not in f"{refused.value.message} {refused.value.hint}"


def test_azure_lists_a_version_as_it_tells_it_elsewhere(azure: Objects) -> None:
    (listed,) = azure.entries()
    assert listed == azure.head("part")


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Objects]:
    """A container with one object, whose tag stands as Azurite 3.35 and Azure's reference have it."""

    class Container(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer({"Content-Length": "7", "Last-Modified": _AT, "ETag": '"0x8D1"'})

        def do_GET(self) -> None:
            kind = "<Content-Type>text/plain</Content-Type><BlobType>BlockBlob</BlobType>"
            properties = (
                f"<Last-Modified>{_AT}</Last-Modified><Etag>0x8D1</Etag><Content-Length>7</Content-Length>{kind}"
            )
            blob = f"<Blob><Name>part</Name><Properties>{properties}</Properties></Blob>"
            listed = f"<EnumerationResults><Blobs>{blob}</Blobs><NextMarker /></EnumerationResults>".encode()
            self._answer({"Content-Length": str(len(listed))}, listed)

        def _answer(self, headers: Mapping[str, str], body: bytes = b"") -> None:
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Container) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "tester")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "dmVyeXNlY3JldA==")
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield opened("az://box")
        server.shutdown()


_AT = "Mon, 30 Nov 2026 12:00:00 GMT"


def test_a_version_is_told_apart_by_all_that_a_store_says_of_it() -> None:
    assert Tag("1") != Tag("1", "2")
