"""A job begun from an input: looked at, put together, checked as a run would, and written."""

from pipeline.starting.beginning import Begun, begin, opened, opened_example
from pipeline.starting.choosing import chosen
from pipeline.starting.looking import Found, around, holds_any
from pipeline.starting.words import TASKS, Language, Task

__all__ = [
    "TASKS",
    "Begun",
    "Found",
    "Language",
    "Task",
    "around",
    "begin",
    "chosen",
    "holds_any",
    "opened",
    "opened_example",
]
