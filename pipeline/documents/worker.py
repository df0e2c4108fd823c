"""A process of its own that reads documents: what is in a file may hang, crash or swell its reader, and no more."""

import json
import os
import signal

from pipeline import machine
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
    machine.bound_memory(MOST_MEMORY_BYTES)
    for line in asked:
        machine.bound_cpu(MOST_CPU_S)  # nobody may be there any more to end this process
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
        return {"broken": f"its reader broke down over it ({type(error).__name__})"}
    return {"digest": digest, **found.facts()}
