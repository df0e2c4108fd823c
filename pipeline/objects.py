"""Object storage by URL: whole objects, and the conditional puts by which two writers find out about each other.

The only importer of obstore, which speaks to S3, GCS, Azure and a folder (`file:///…`, for tests and shared disks).
Everything here blocks: run it in a thread. Credentials are those of the environment, as obstore finds them.

A put that timed out may have been done. So `create` and `replace` look at what is there before they say that another
was first: what is written has to name its writer.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote, urlsplit

from pipeline import machine
from pipeline.errors import JobError, PipelineError, RunStateError, cannot_write
from pipeline.installed import installing
from pipeline.process import make_private
from pipeline.urls import SCHEMES, is_url

if TYPE_CHECKING:
    from obstore.store import ObjectStore

RETRIES = 3
RETRY_S = 20.0
"""How long one request is tried again after a 5xx or a lost connection; whoever asked tries on after that, or tells."""
TIMEOUT_S = 60.0
_CREDENTIALS = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL"),
    "gs": ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_APPLICATION_CREDENTIALS"),
    "az": ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN", "AZURE_CLIENT_ID"),
}
_STATUS = re.compile(r"status code: (\d{3}[ A-Za-z]*)")
_CODE = re.compile(r"<Code>(\w+)</Code>|\"code\": ?\"(\w+)\"")
_SECRET = re.compile(
    r"\?[^\s)]*|(?<=//)[^/\s]*@"
)  # a token may stand in the query of an address, a login before its host
_CHUNK_BYTES = 5 * 2**20
LARGE_BYTES = 64 * 2**20
"""A file up to this size is put in one request, from memory."""
_PIECE_BYTES, _MOST_PIECES = 8 * 2**20, 9_000
"""S3 takes pieces of 5 MiB at least, and 10,000 of them at most."""


class Away(RunStateError):
    """The store does not answer, or is too busy: what was asked of it may be tried again."""


class Tag(NamedTuple):
    """Which version of an object it is, as its store says."""

    e_tag: str | None
    version: str | None = None


class Entry(NamedTuple):
    """An object as it is listed."""

    name: str
    size: int  # bytes
    tag: Tag


def is_missing(url: str) -> bool:
    """Whether the folder of a `file://` address is not there: `opened` makes it, and who reads is to make nothing."""
    place = urlsplit(url)
    return place.scheme == "file" and not Path(unquote(place.path)).exists()


def opened(url: str) -> "Objects":
    """The objects below a URL; nothing is asked of the store yet.

    Raises `JobError` where obstore is not installed or the address is none.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import LocalStore, from_url
    except ImportError:
        raise JobError(f"{url} needs obstore, which is not installed", f"`{installing('objects')}`") from None
    if not is_url(url):
        raise JobError(f"{url} is no address of object storage", f"{', '.join(f'{name}://…' for name in SCHEMES)}")
    place = urlsplit(url)
    try:
        if place.scheme == "file":
            folder = Path(unquote(place.path))
            make_private(folder)
            return Objects(url.rstrip("/"), LocalStore(folder))
        store = from_url(
            f"{place.scheme}://{place.netloc}",
            client_options={"allow_http": True, "timeout": timedelta(seconds=TIMEOUT_S)},  # http:// where it is said
            retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_S)},
        )
    except (BaseError, ValueError, OSError) as error:
        raise JobError(f"{url} cannot be used: {_told(error)}", _hint(url)) from None
    return Objects(url.rstrip("/"), store, place.path.strip("/"))  # as it is: a name may hold a %


class _OtherThere(Exception):
    """Ends a put whose place was taken meanwhile; the store forgets the pieces that it has."""


class Objects:
    """All objects whose names begin with a prefix.

    Every method raises `Away` while the store does not answer, and `RunStateError` for any other refusal of it; both
    name the URL, and never a key.
    """

    def __init__(self, url: str, store: "ObjectStore", prefix: str = "") -> None:
        self.url = url
        self._store, self._prefix = store, prefix

    def below(self, name: str) -> "Objects":
        """Those whose names begin with `name` and a slash."""
        return Objects(f"{self.url}/{name}", self._store, self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    def put(self, name: str, data: bytes | Path) -> None:
        """Have an object there, whole or not at all; another in its place is gone. A file is put in pieces."""
        import obstore

        with self._refusals(name):
            piece = _CHUNK_BYTES if isinstance(data, bytes) else max(_CHUNK_BYTES, _piece(data))
            obstore.put(self._store, self._path(name), data, chunk_size=piece, max_concurrency=4)

    def create(self, name: str, data: bytes) -> bool:
        """Have an object there unless there is one of other bytes: whether ours is there now."""
        import obstore
        from obstore.exceptions import AlreadyExistsError

        with self._refusals(name):
            try:
                obstore.put(self._store, self._path(name), data, mode="create")
                return True
            except AlreadyExistsError:
                return self.get(name) == data

    def head(self, name: str) -> Entry | None:
        """An object as it would be listed; None where there is none."""
        import obstore

        with self._refusals(name, missing=True):
            meta = obstore.head(self._store, self._path(name))
            return Entry(name, meta["size"], _tag(meta))
        return None

    def put_over(self, name: str, path: Path, before: Tag | None) -> Entry | None:
        """Put a file in the place of the version `before`, or of none: as it is there now. None: another is there.

        A large one is put in pieces, for which no store knows a condition: what is there is looked at before they are
        made one object.
        """
        import obstore

        size = path.stat().st_size
        if before and before.version is None and urlsplit(self.url).scheme == "gs":  # its condition; no listing has it
            seen = self.head(name)
            if seen is None or seen.tag.e_tag != before.e_tag:
                return None
            before = seen.tag
        if size <= LARGE_BYTES:
            data = path.read_bytes()
            if before is None:
                return self.head(name) if self.create(name, data) else None
            tag = self.replace(name, data, before)
            return tag and Entry(name, size, tag)

        piece = _piece(path)
        with self._refusals(name), path.open("rb") as file:
            try:
                with obstore.open_writer(self._store, self._path(name), buffer_size=piece, max_concurrency=4) as writer:
                    while block := file.read(piece):
                        writer.write(block)
                    seen = self.head(name)
                    if (seen and seen.tag.e_tag) != (before and before.e_tag):
                        raise _OtherThere
            except _OtherThere:
                return None
        return self.head(name)

    def replace(self, name: str, data: bytes, tag: Tag) -> Tag | None:
        """Put an object in the place of the version `tag`: the tag that it has now. None: there is another version."""
        import obstore
        from obstore.exceptions import PreconditionError

        with self._refusals(name):
            mode: Any = {key: value for key, value in tag._asdict().items() if value is not None}
            try:
                if self.url.startswith("file:"):
                    return self._replace_file(name, data, tag)
                return _tag(obstore.put(self._store, self._path(name), data, mode=mode))
            except (PreconditionError, FileNotFoundError, BlockingIOError):
                now = self.get_tagged(name)
                return now[1] if now and now[0] == data else None

    def _replace_file(self, name: str, data: bytes, tag: Tag) -> Tag:
        """Folders know no conditional put: one of this machine replaces at a time."""
        import obstore

        turn = machine.open_file(str(getattr(self._store, "prefix")), os.O_RDONLY)  # noqa: B009  of a folder alone
        try:
            machine.lock(turn)
            if _tag(obstore.head(self._store, self._path(name))) != tag:
                raise FileNotFoundError
            return _tag(obstore.put(self._store, self._path(name), data))
        finally:
            os.close(turn)

    def get(self, name: str) -> bytes | None:
        """An object's bytes; None where there is none."""
        found = self.get_tagged(name)
        return found and found[0]

    def get_tagged(self, name: str) -> tuple[bytes, Tag] | None:
        """An object's bytes and version; None where there is none."""
        import obstore

        with self._refusals(name, missing=True):
            found = obstore.get(self._store, self._path(name))
            return bytes(found.bytes()), _tag(found.meta)
        return None

    def fetch(self, name: str, to: Path) -> bool:
        """Have an object as a file, whole or not at all, for the user's eyes only: whether there was one."""
        import obstore

        hidden = to.with_name(f".{to.name}.tmp")
        with self._refusals(name, missing=True):
            found = obstore.get(self._store, self._path(name))
            with on_disk(to):
                make_private(to.parent)
                hidden.touch(0o600)
                file = hidden.open("wb", buffering=0)
            with file:
                for chunk in found.stream(min_chunk_size=_CHUNK_BYTES):
                    with on_disk(to):
                        file.write(chunk)
            with on_disk(to):
                machine.replace(hidden, to)
            return True
        return False

    def entries(self, under: str = "") -> list[Entry]:
        """All objects below these or below the folder `under`, by name; names are counted from here."""
        import obstore
        from obstore.exceptions import BaseError

        prefix = self._path(under).rstrip("/") if under else self._prefix
        cut = len(self._prefix) + 1 if self._prefix else 0
        left = RETRIES
        while True:
            with self._refusals(under):
                try:
                    pages = list(obstore.list(self._store, prefix or None, chunk_size=1_000))
                except BaseError as error:  # obstore asks again for all but a list that broke off
                    left -= 1
                    if left and "list response body" in str(error):
                        continue
                    raise
                return sorted(Entry(meta["path"][cut:], meta["size"], _tag(meta)) for metas in pages for meta in metas)

    def delete(self, names: Sequence[str]) -> None:
        """Have no objects of these names."""
        import obstore

        if not names:
            return
        with self._refusals(names[0]):
            try:
                obstore.delete(self._store, [self._path(name) for name in names])
            except FileNotFoundError:  # where it is one: the others may be there still
                for name in names:
                    with suppress(FileNotFoundError):
                        obstore.delete(self._store, self._path(name))

    def copy(self, name: str, to: "Objects", new: str) -> bool:
        """Copy an object within its store, to `new` of other objects there: whether there was one."""
        import obstore

        with self._refusals(name, missing=True):
            obstore.copy(self._store, self._path(name), to._path(new))
            return True
        return False

    @contextmanager
    def _refusals(self, name: str, missing: bool = False) -> Iterator[None]:
        """Say what the store refuses; `missing`: that an object is not there is no refusal, and the block is left."""
        from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

        try:
            yield
        except PipelineError:
            raise
        except FileNotFoundError as error:
            if missing and "NoSuchBucket" not in str(error):
                return
            raise RunStateError(f"{self._at(name)} is not there: {_told(error)}", _hint(self.url)) from None
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise RunStateError(f"{self._at(name)}: access was refused: {_told(error)}", _hint(self.url)) from None
        except (BaseError, ValueError, NotImplementedError, OSError) as error:
            told = _told(error)
            if re.match(r"4(?!08|09|29)\d\d", told):
                raise RunStateError(f"{self._at(name)} was refused: {told}", _hint(self.url)) from None
            raise Away(f"{self._at(name)} cannot be reached: {told}", _hint(self.url)) from None

    def _at(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url


@contextmanager
def on_disk(path: Path) -> Iterator[None]:
    """Tell what our own disk refuses from what the store does."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from None


def _piece(path: Path) -> int:
    return max(_PIECE_BYTES, path.stat().st_size // _MOST_PIECES)


def _tag(meta: Any) -> Tag:
    """Azure lists a tag without the quotes that it has everywhere else, and that its conditions need."""
    e_tag = meta.get("e_tag")
    return Tag(f'"{e_tag}"' if e_tag and e_tag.startswith("0x") else e_tag, meta.get("version"))


def _told(error: Exception) -> str:
    """What a store says, in short: it may quote a request back, with what was signed or a token in its address."""
    text = str(error).split("\n\nDebug")[0]
    status, code = _STATUS.search(text), _CODE.search(text)
    if status:
        named = f" ({code[1] or code[2]})" if code else ""
        return f"{status[1].strip()}{named}"
    return _SECRET.sub("", " ".join(text.split()))[:300]


def _hint(url: str) -> str:
    scheme = urlsplit(url).scheme
    if scheme not in _CREDENTIALS:
        return "check the disk or the path, then run the same command again"
    named = ", ".join(_CREDENTIALS[scheme])
    return f"check the address, the way to it, and the credentials in the environment: {named}"
