"""Object storage for tests: in memory, a folder, and an S3 server of other people that keeps conditions of a put."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.request import ProxyHandler, Request, build_opener
from uuid import uuid4

import pytest
from obstore.store import MemoryStore
from strangers import listening

from pipeline.objects import Away, Objects, opened

_S3 = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "verysecret", "AWS_REGION": "us-east-1"}


def in_memory() -> Objects:
    return Objects("memory:///test", MemoryStore())


def in_folder(folder: Path) -> Objects:
    return opened(f"file://{folder}")


@contextmanager
def s3_server(address: str = "127.0.0.1") -> Iterator[str]:
    """The URL of a bucket of moto's S3, whose address and credentials are in the environment meanwhile."""
    bound = "127.0.0.1" if address == "127.0.0.1" else "0.0.0.0"  # one that other machines reach, too
    with (
        listening("moto", "moto_server", "-H", bound, "-p", "PORT") as port,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name in list(os.environ):
            if name.startswith("AWS_"):
                patch.delenv(name)
        for name, value in {**_S3, "AWS_ENDPOINT_URL": f"http://{address}:{port}"}.items():
            patch.setenv(name, value)
        bucket = f"bucket-{uuid4().hex[:8]}"
        request = Request(f"http://127.0.0.1:{port}/{bucket}", method="PUT")
        build_opener(ProxyHandler({})).open(request).close()
        yield f"s3://{bucket}"


class MachineLost(Exception):
    """The machine that put is gone in the middle of it."""


class Faulty(Objects):
    """Objects whose store takes so many more changes: then the machine is lost, or one change ends as away."""

    def __init__(self, objects: Objects, fault: "Fault") -> None:
        super().__init__(objects.url, objects._store, objects._prefix)
        self._fault = fault

    def below(self, name: str) -> Objects:
        return Faulty(super().below(name), self._fault)

    def put(self, name: str, data: bytes | Path) -> None:
        content = data if isinstance(data, bytes) else data.read_bytes()
        with self._fault.change(lambda: super(Faulty, self).put(name, content)):
            super().put(name, data)

    def copy(self, name: str, to: Objects, new: str) -> bool:
        with self._fault.change():
            return super().copy(name, to, new)
        raise AssertionError

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            with self._fault.change():
                super().delete([name])


@dataclass
class Fault:
    """What befalls the change after the next `left` ones; None: nothing does. Counts what was done."""

    left: int | None = None
    kind: Literal["lost", "away", "late", "overtaken"] = "lost"
    done: int = 0
    _on_its_way: Callable[[], None] | None = None

    @contextmanager
    def change(self, again: Callable[[], None] | None = None) -> Iterator[None]:
        if self.left == 0 and self.kind == "lost":
            raise MachineLost
        if self.left == 0:
            self.left = None
            if self.kind == "late":  # it was done, and the answer did not come
                yield
            elif self.kind == "overtaken":  # it is done after the next one
                self._on_its_way = again
            raise Away("the store is away")
        if self.left:
            self.left -= 1
        yield
        self.done += 1
        if self._on_its_way:
            self._on_its_way()
            self._on_its_way = None
