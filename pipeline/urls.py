"""Addresses in object storage: a path would fold one, `s3://bucket/x` to `s3:/bucket/x`."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

SCHEMES = ("s3", "gs", "az", "file")
"""`file` is a folder of this machine, as `file:///mnt/tables`."""
_URL = re.compile(r"(?:(s3|gs|az)://([^/]*)|(file)://())(/.*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Url:
    """Where an object lies, with the parts that a path has; a folder is written without the `/` at its end."""

    text: str

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self.text}/{name}")

    @property
    def name(self) -> str:
        """What follows the last `/`."""
        return self.text.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The end of the name from its last dot on."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "Url":
        """The folder that it lies in."""
        return Url(self.text.rpartition("/")[0])

    def with_name(self, name: str) -> "Url":
        """The object of that name beside it."""
        return self.parent / name

    def with_stem(self, stem: str) -> "Url":
        """The same beside it, with another stem."""
        return self.with_name(f"{stem}{self.suffix}")


def is_url(text: str) -> bool:
    """Whether it is an address in object storage; `https://` and a path are none."""
    return _URL.fullmatch(text) is not None


def located(text: str) -> Path | Url:
    """The path of a file, or the address of an object."""
    return Url(text.rstrip("/")) if is_url(text) else Path(text)


def refuse_credentials(path: str) -> str:
    """The path; raises `ValueError` for an address with a key in it, which manifests and logs would keep."""
    if is_url(path) and "@" in path.split("/")[2]:  # do not show it
        raise ValueError("the address must not hold credentials: they are read from the environment")
    return path


def refuse_unfit(url: str) -> None:
    """Raise `ValueError` for an address that names nothing within a bucket, or that says more than where it lies."""
    found = _URL.fullmatch(url)
    if found is None:
        raise ValueError(f"{url} is no address in object storage: {', '.join(f'{each}://' for each in SCHEMES)}")
    scheme, bucket, key = found[1] or found[3], found[2] or "", found[5] or ""
    refuse_credentials(url)
    if set("?#") & set(url) or not url.isprintable():  # do not show it: others put credentials there
        raise ValueError("the address must have no `?`, `#` or line break: credentials are read from the environment")
    if not (bucket or scheme == "file") or not key.strip("/"):
        raise ValueError(f"{url} names nothing in a bucket: {scheme}://bucket/name")
    if any(part in ("", ".", "..") for part in key.removeprefix("/").removesuffix("/").split("/")):
        raise ValueError(f"{url} has a part that is empty or made of dots")
