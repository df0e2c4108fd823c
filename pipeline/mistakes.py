"""Mistakes in a job file as a person should read them: all of them, each with its line and what was meant."""

import difflib
import re
from pathlib import Path
from typing import get_args

from pydantic import BaseModel, ValidationError

from pipeline.errors import JobError


def as_job_error(error: ValidationError, path: Path, text: str, form: type[BaseModel]) -> JobError:
    """What is wrong with a job file of this `form`, misspelt names first; all but the first are its `others`."""
    told: dict[tuple[str, ...], JobError] = {}
    spelt, every = set(), error.errors(include_url=False)
    or_a_truth = {found["loc"][:-1] for found in every if found["loc"][-1:] == ("bool",)}
    for found in sorted(every, key=lambda found: found["type"] != "extra_forbidden"):
        # pydantic names the branch of a union as if it were a key, and the place in a list.
        place = [str(part) for part in found["loc"] if not str(part).startswith("literal[")]
        if place[-1:] in (["int"], ["str"], ["float"], ["bool"], ["dict[str,any]"]):
            place.pop()
        close = found["type"] == "extra_forbidden" and difflib.get_close_matches(place[-1], _known(place, form), n=1)
        # A misspelt name is also a missing one: the spelling is what helps.
        if tuple(place) not in told and not (found["type"] == "missing" and tuple(place) in spelt):
            said = found["msg"] + (", true or false" if found["loc"][:-1] in or_a_truth else "")
            if found["type"] == "list_type" and isinstance(found["input"], dict):
                said = f"it may come several times: write [[{'.'.join(place)}]], with two brackets"
            told[tuple(place)] = _told(found["type"], said, place, close[0] if close else "", path, text, form)
        if close:
            spelt.add((*place[:-1], close[0]))
    first, *others = told.values()
    first.others = tuple(others)
    return first


_LIKE_A_KEY = {"api_key", "apikey", "api-key", "token", "secret", "password", "gemini_api_key", "google_api_key"}


def _told(kind: str, said: str, place: list[str], close: str, path: Path, text: str, form: type[BaseModel]) -> JobError:
    named = list(place)
    number = f" number {int(place.pop(1)) + 1}" if place[1:2] and place[1].isdecimal() else ""
    section = (f"[[{place[0]}]]{number}" if number else f"[{place[0]}]") if place else "the job file"
    table = f"[[{place[0]}]]{number}" if number and len(place) <= 2 else f"[{'.'.join(place[:-1])}]"
    name = place[-1] if place else ""
    where = f"\n{path}{_line_of(text, named)}"
    if kind == "extra_forbidden":
        what = f"`{name}` is not a setting of {table}" if len(place) > 1 else f"[{name}] is not a section"
        hint = f"did you mean `{close}`?" if close else f"it knows {', '.join(sorted(_known(named, form)))}"
        if name.lower() in _LIKE_A_KEY:
            hint = "a key never stands in a job file: `export GEMINI_API_KEY=…`, or say with `key` where it is"
        return JobError(f"{what}{where}", hint)
    if kind == "missing":
        what = f"{table} has no `{name}`" if len(place) > 1 else f"the section [{name}] is missing"
        return JobError(f"{what}\n{path}", "docs/reference.md lists every setting")
    message = said.removeprefix("Value error, ")
    at = f"{section} {'.'.join(place[1:])}: ".replace(" : ", ": ") if place else ""
    return JobError(f"{at}{message[0].lower() + message[1:]}{where}")


def _line_of(text: str, place: list[str]) -> str:
    """`, line 3`, where the key of a section, or the section itself, stands at the beginning of a line."""
    section: list[str] = []
    several: dict[str, int] = {}  # how many there are so far of a section that may come several times
    for number, line in enumerate(text.splitlines(), 1):
        if heading := re.match(r"\s*(\[?)\[([\w.\-]+)\]", line):
            section, key = heading[2].split("."), ""
            if heading[1]:
                several[heading[2]] = several.get(heading[2], -1) + 1
                section.append(str(several[heading[2]]))
        elif assigned := re.match(r"\s*([\w\-]+)\s*=", line):
            key = assigned[1]
        else:
            continue
        if place == ([*section, key] if key else section):
            return f", line {number}"
    return ""


def _known(place: list[str], form: type[BaseModel]) -> list[str]:
    """Names beside the last of a place."""
    model = form
    for part in place[:-1]:
        if not part.isdecimal():
            annotation = next(f.annotation for name, f in model.model_fields.items() if part in (name, f.alias))
            options = [annotation, *get_args(annotation)]
            model = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return [field.alias or name for name, field in model.model_fields.items()]
