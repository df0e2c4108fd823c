"""Object storage for tests: in memory, a folder, and an S3 server of other people that keeps conditions of a put."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen
from uuid import uuid4

import pytest
from obstore.store import MemoryStore

from pipeline.objects import Objects, opened

_S3 = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "verysecret", "AWS_REGION": "us-east-1"}


def in_memory() -> Objects:
    return Objects("memory:///test", MemoryStore())


def in_folder(folder: Path) -> Objects:
    return opened(f"file://{folder}")


@contextmanager
def s3_server() -> Iterator[str]:
    """The URL of a bucket of an S3 server on this machine, whose credentials are in the environment meanwhile."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("AWS_"):
                patch.delenv(name)
        for name, value in {**_S3, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
            patch.setenv(name, value)
        bucket = f"bucket-{uuid4().hex[:8]}"
        urlopen(Request(f"http://{host}:{port}/{bucket}", method="PUT")).close()
        try:
            yield f"s3://{bucket}"
        finally:
            server.stop()
