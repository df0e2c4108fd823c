"""A process of its own that reads documents: what is in a file may hang, crash or swell its reader, and no more."""

import json
import os
import signal
from contextlib import suppress

from pipeline.documents.decoding import NoText
from pipeline.documents.reading import read

MOST_MEMORY_BYTES = 2_000_000_000
"""Address space of a process that reads documents. Where it does not do, little of Python works: the process ends with
1."""
MOST_CPU_S = 120
"""CPU time that one document may take."""


def serve() -> None:
    """Answer each line of stdin, a document, with a line of stdout; ends with stdin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program that asks
    asked, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):  # a library may have something to say
        os.dup2(nowhere, number)
    _bound_memory()
    for line in asked:
        _bound_time()
        answers.write(json.dumps(_answer(json.loads(line))).encode() + b"\n")
        answers.flush()


def _answer(document: dict[str, str | None]) -> dict[str, object]:
    try:
        digest, found = read(str(document["at"]), document["kind"], document["encoding"])  # type: ignore[arg-type]
    except NoText as why:
        return {"gone": str(why)}
    except MemoryError:
        raise
    except Exception as error:  # foreign bytes are read, in ways of a library
        return {"gone": f"its reader broke down over it ({type(error).__name__})"}
    return {"digest": digest, **found.facts()}


def _bound_memory() -> None:
    with suppress(ImportError, OSError, ValueError):  # no such bound on this system
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY_BYTES, hard))


def _bound_time() -> None:
    """Nobody may be there any more to end this process."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + MOST_CPU_S, hard))
