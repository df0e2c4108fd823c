"""The emulator: an ASGI app that speaks the Gemini wire protocol, quotas and faults included."""

from pipeline.emulator.app import Emulator
from pipeline.emulator.batch_faults import parse_batch_faults, told_of_batches
from pipeline.emulator.faults import Faults, parse_faults, told
from pipeline.emulator.options import EmulatorOptions
from pipeline.emulator.server import serve

__all__ = [
    "Emulator",
    "EmulatorOptions",
    "Faults",
    "parse_batch_faults",
    "parse_faults",
    "serve",
    "told",
    "told_of_batches",
]
