"""`python -m pipeline.fleet.serving`: a worker as a process, for `pipeline.fleet.processes` alone."""

import threading
from typing import BinaryIO

import anyio
import anyio.from_thread
import anyio.to_thread

from pipeline.process import backend, end, make_fit, quick_imports, rare_collections

with quick_imports():
    from pipeline.fleet.orders import FromWorker
    from pipeline.fleet.processes import framed, own_pipes, read_frame
    from pipeline.fleet.worker import Worker


async def serve(heard: BinaryIO, told: BinaryIO) -> None:
    """Work until the driver has closed the pipe, or is gone, and what was in flight then has come back."""
    worker = Worker()
    token = anyio.lowlevel.current_token()

    def listen() -> None:
        while (message := read_frame(heard)) is not None:
            anyio.from_thread.run_sync(worker.hear, message, token=token)
        anyio.from_thread.run_sync(worker.leave, token=token)

    async def speak() -> None:
        async for message in worker.said:
            await anyio.to_thread.run_sync(_written, told, message)

    threading.Thread(target=listen, daemon=True).start()
    async with anyio.create_task_group() as group:
        group.start_soon(speak)
        await worker.run()


def _written(pipe: BinaryIO, message: FromWorker) -> None:
    left = memoryview(framed(message))
    try:
        while left:
            left = left[pipe.write(left) :]
    except OSError:  # nobody is there to be told: what the worker does then it knows from the other pipe
        return


def main() -> None:
    """The process."""
    heard, told = own_pipes()
    make_fit()
    with rare_collections():
        anyio.run(serve, heard, told, backend_options=backend())
    end(0)


if __name__ == "__main__":
    main()
