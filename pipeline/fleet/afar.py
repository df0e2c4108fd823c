"""A run on object storage as its driver has it: the lease, the working copy here, and what is put of it."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from shutil import copyfile, rmtree

import anyio
import anyio.to_thread

from pipeline.errors import PipelineError, RunStateError
from pipeline.fleet.shards import write_rows
from pipeline.meanwhile import meanwhile
from pipeline.objects import Objects, opened
from pipeline.process import make_private
from pipeline.run.engine import Works
from pipeline.run.guards import set_aside
from pipeline.run.prepare import Session
from pipeline.store import afar, units
from pipeline.store.afar import Afar
from pipeline.store.lease import Busy, Lease, leading
from pipeline.store.manifest import Lock
from pipeline.store.parts import files
from pipeline.store.units import Shard

PUT_S = 10.0
"""Between two looks for files of the whole run that changed: whoever looks from another machine sees no more of it."""
LOG_BYTES_S = 50_000
"""The log is put whole each time: so often that no more than this is put a second."""
_BEGUN_WITH = ("manifest.json", units.NAME)
"""What is put once the rows of all shards are there; with the last of them the generation stands."""
_LOOKS = ".looks"
_AT_ONCE = 4  # shards whose rows are put


class Lead:
    """The run of a session, which this process leads."""

    def __init__(self, root: Objects, session: Session, lease: Lease, number: int) -> None:
        self._root, self._lease, self._number = root, lease, number
        self._run = afar.generation(root, number)
        self._session, self._directory = session, session.directory
        self._put: dict[str, tuple[int, int]] = {}  # by name, size and time of change
        self._log_at = 0.0
        self._is_begun = False
        self._last = 0  # session that put anything of a shard

    @property
    def url(self) -> str:
        """Where the run lies."""
        return self._run.url

    @property
    def session(self) -> int:
        """Number of this session: lives of later ones have higher ones, whatever became of the lease's object."""
        return max(self._lease.session, self._last + 1)

    @property
    def generation(self) -> int:
        """Number of the run's generation."""
        return self._number

    @property
    def is_lost(self) -> bool:
        """Whether another process leads it now."""
        return self._lease.lost.is_set()

    def take(self, is_begun: bool) -> None:
        """Have the working copy as the storage is. Raises `RunStateError`."""
        known = afar.read(self._directory)
        if known is not None and known.url != self.url:
            set_aside(self._directory)  # of an older generation, or of one that nobody agreed to
            known = None
        afar.write(self._directory, Afar(self.url, self.session))
        self._is_begun = is_begun
        if not is_begun:
            (self._directory / units.NAME).unlink(missing_ok=True)
            return
        # What this machine led last it knows as well as the storage, and the end of its log better.
        has_all = all((self._directory / name).exists() for name in _BEGUN_WITH)
        if known is None or known.session != self.session - 1 or not has_all:
            afar.bring_own(self._run, self._directory)
        for name in _BEGUN_WITH:
            if not (self._directory / name).exists():
                raise RunStateError(
                    f"{self.url}/{name} is missing: nobody knows which rows the answers are of\nNothing was sent.",
                    "restore it, or begin anew with `--fresh`, which keeps the answers beside",
                )
        self._last = afar.bring(self._directory, sums=True)
        afar.begin(self._root, self._number)  # a driver may have been killed before it said so

    async def place(self, shards: Sequence[Shard]) -> None:
        """Put the rows of each shard where the workers take them from, once. Raises `RunStateError`."""
        if self._is_begun:
            return
        at_once = anyio.CapacityLimiter(_AT_ONCE)
        trouble: PipelineError | None = None

        async def put(shard: Shard) -> None:
            nonlocal trouble
            try:
                await anyio.to_thread.run_sync(self._place, shard, limiter=at_once)
            except PipelineError as error:
                trouble = error
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for shard in shards:
                tasks.start_soon(put, shard)
        if trouble is not None:
            raise trouble
        await anyio.to_thread.run_sync(self._begin)

    def _begin(self) -> None:
        if self.is_lost:
            raise self._lease.refusal
        for name in _BEGUN_WITH:
            self._run.put(name, self._directory / name)
        afar.begin(self._root, self._number)
        self._is_begun = True

    def _place(self, shard: Shard) -> None:
        name = f"{afar.shard_name(shard)}/{units.INPUT}"
        if not shard.pieces:
            self._run.put(name, shard.input)
            return
        try:
            make_private(shard.directory)
            write_rows(self._session, shard)
            self._run.put(name, shard.input)
        finally:  # here the rows are read from the table
            shard.input.unlink(missing_ok=True)

    def looked_into(self, shard: Shard) -> Path:
        """A run directory that is what the shard's is, to be opened and thrown away. Raises `RunStateError`."""
        afar.bring_whole(shard)
        there = self._directory / _LOOKS / shard.directory.name
        rmtree(there, ignore_errors=True)
        for name in ("", "calls", "results"):
            make_private(there / name)
        for kind in ("calls", "results"):
            for part in files(shard.directory / kind):
                (there / kind / part.name).hardlink_to(part)  # it never changes
        for file in shard.directory.iterdir():
            if file.is_file() and file.name != units.INPUT:
                copyfile(file, there / file.name)
        return there

    def looked(self) -> None:
        """All that was opened is closed."""
        rmtree(self._directory / _LOOKS, ignore_errors=True)

    async def keep(self, engine: Works) -> None:
        """Put what changes, until cancelled; where the lease is lost nothing more is asked."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._heed, engine)
            while True:
                slept_at = anyio.current_time()
                await anyio.sleep(PUT_S)
                if anyio.current_time() > slept_at + 2 * PUT_S:
                    continue  # this process was halted: whether it leads still the lease has to find out first
                with suppress(PipelineError):  # a reader sees it later, and the lease tells of a store that is gone
                    await anyio.to_thread.run_sync(self.put)

    async def _heed(self, engine: Works) -> None:
        await self._lease.lost.wait()
        engine.halt(self._lease.refusal)

    def put(self, is_end: bool = False) -> None:
        """Put the files of the whole run that changed; none of one that did not begin. Raises `RunStateError`."""
        if self.is_lost or not self._is_begun:
            return
        now = time.monotonic()
        for name in afar.OWN:
            path = self._directory / name
            with suppress(FileNotFoundError):
                seen = path.stat()
                state = seen.st_size, seen.st_mtime_ns
                if self._put.get(name) == state:
                    continue
                if name == afar.LOG and not is_end:
                    if now < self._log_at:
                        continue
                    self._log_at = now + seen.st_size / LOG_BYTES_S
                self._run.put(name, path.read_bytes())
                self._put[name] = state

    async def bring(self, *, whole: bool) -> None:
        """Have what the workers wrote in the working copy. Raises `RunStateError`."""
        await anyio.to_thread.run_sync(partial(afar.bring, self._directory, sums=not whole))


@asynccontextmanager
async def kept(lead: Lead | None, engine: Works) -> AsyncIterator[None]:
    """Put what changes of the run while the block goes on."""
    async with meanwhile(partial(lead.keep, engine)) if lead else nullcontext():
        yield


@asynccontextmanager
async def led_from_afar(session: Session, busy: Busy) -> AsyncIterator[Lead | None]:
    """The run of a session while this process leads it; None where it lies here. Raises `PipelineError`.

    `busy` says what is waited for, where somebody led it who may do so still.
    """
    path = session.job.spec.run.path
    if path is None:
        yield None
        return
    root = opened(afar.run_url(path, session.job.name, session.kind))
    if Lock.held(session.directory / "lock"):  # without a look at the lease, which takes a while
        raise RunStateError(f"{session.directory} is in use", "`pipeline report` shows its progress")
    known = afar.read(session.directory)
    async with leading(root, busy, known.session if known else 0) as lease:
        there = await anyio.to_thread.run_sync(afar.newest, root)
        number = there + 1 if session.options.fresh or not there else there
        lead = Lead(root, session, lease, number)
        await anyio.to_thread.run_sync(lead.take, number == there)
        try:
            yield lead
        finally:
            with anyio.CancelScope(shield=True), suppress(PipelineError):
                await anyio.to_thread.run_sync(lead.put, True)
