"""From a job file and the flags to a job."""

import difflib
import os
import re
import shlex
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.errors import JobError
from pipeline.job.checking import check_caching, check_lanes, check_schema, check_spoken, check_targets
from pipeline.job.compiling import compile_job
from pipeline.job.job import Job
from pipeline.mistakes import Where, as_job_error, placed
from pipeline.protocols import PROTOCOLS, Protocol
from pipeline.sections import JobFile
from pipeline.toml_lines import Place, lines_of

Lines = Mapping[Place, int]

_BY_PROGRAM = "a program"
"""Where a setting comes from that stands in no file."""


def load(path: Path, flags: Mapping[str, object] | None = None) -> Job:
    """Read a job file; `flags` ("model.name" → value, None: not given) win over it. Raises `JobError`."""
    return compiled(path, *read_job(path, flags))


def load_with(path: Path, sections: Mapping[str, Any]) -> Job:
    """Read a job file and lay sections over it. Raises `JobError`."""
    data, lines = _written(path)
    origins = _origins(data, path, lines) | _by_program(sections)
    return compiled(path, *_checked(path, laid_over(data, sections), lines, origins, {}))


def laid_over(data: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Sections with others laid over them: a table key by key, all else whole."""
    both = dict(data)
    for name, values in more.items():
        there = both.get(name)
        both[name] = {**there, **values} if isinstance(there, dict) and isinstance(values, dict) else values
    return both


def made(path: Path, sections: Mapping[str, Any]) -> Job:
    """A job of sections as a file has them, which stand in none: what they name is looked for beside `path`.

    Raises `JobError`.
    """
    return compiled(path, *_checked(path, dict(sections), {}, _by_program(sections), {}))


def read_job(path: Path, flags: Mapping[str, object] | None = None) -> tuple[JobFile, Mapping[str, str]]:
    """A job file's settings, and where each comes from; no other file is read. Raises `JobError`."""
    data, lines = _written(path)
    return _checked(path, data, lines, _origins(data, path, lines), flags or {})


def with_input_alone(path: Path) -> JobFile | None:
    """A job of nothing but the input that a file names, whatever else is wrong there; None where that is wrong too."""
    try:
        data, _ = _written(path)
        return JobFile.model_validate({**_ANY, "input": data["input"]})
    except (JobError, KeyError, ValidationError):
        return None


_ANY = {"prompt": {"template": "-"}, "model": {"name": "any"}, "output": {"path": "any.csv"}}


def _written(path: Path) -> tuple[dict[str, Any], Lines]:
    text = ""
    if path.is_dir() or (path.suffix.lower() in _TABLES and path.exists()):
        raise JobError(f"{path} is no job file", f"`pipeline init {shlex.quote(str(path))}` writes one about it")
    try:
        text = re.sub("\r\n?", "\n", _content(path).decode("utf-8-sig"))
        data = tomllib.loads(text)
    except FileNotFoundError:
        raise JobError(f"no job file at {path}", _other_jobs(path)) from None
    except OSError as error:
        raise JobError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise JobError(f"{path} is not UTF-8 (byte {error.start})", "save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise _unreadable(path, text, str(error)) from None
    except RecursionError:
        raise _too_deep(path) from None
    except ValueError:  # Python's own bound of numbers
        raise JobError(f"{path} is not valid TOML: it has a number of thousands of digits") from None
    if _is_deep(data):
        raise _too_deep(path)
    if path.stem.startswith(".") or not path.stem.isprintable():
        raise JobError(
            f"the job file is called {path.name!r}, and its run directory would be called {path.stem!r}",
            "give it a plain name such as summarize.toml",
        )
    return data, lines_of(text)


def hear(path: Path) -> None:
    """Keep for this process what comes through a job file that is none, as a pipe: it can be read once.

    Waits for its end. Raises `JobError`.
    """
    with suppress(OSError):  # which is told where it is loaded
        _HEARD[path] = _content(path)


_HEARD: dict[Path, bytes] = {}
_MOST_BYTES = 2**24


def _content(path: Path) -> bytes:
    """A job file, of which there may be no end. Raises OSError and `JobError`."""
    if path in _HEARD:
        return _HEARD[path]
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise JobError(f"{path} is no job file: it has more than {_MOST_BYTES:,} bytes")
    return content


_TABLES = frozenset((".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".xlsx", ".gz"))  # what is often given for a job

_SLIPS = (  # what a line may have that TOML does not take, and what is meant
    (re.compile("[“”‘’「」＝，【】]"), "TOML takes plain quotes and signs alone: \" ' = , [ ]"),
    (re.compile(r'=\s*"[^"]*\\'), "in a path write / for each \\, or put the text in single quotes"),
    (
        re.compile(r"=\s*(?:yes|no|on|off|true|false|none|null)\b", re.I),
        "yes is `true`, no is `false`; leave out the rest",
    ),
    (re.compile(r"=\s*[^\s\"'\[{\d+=-]"), "put a text in quotes"),
)

_MOST_DEEP = 100


def _is_deep(data: Mapping[str, Any]) -> bool:
    """Whether values lie in so many others that nothing could walk through them."""
    level: list[Any] = [data]
    for _ in range(_MOST_DEEP):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [value for values in inner for value in values if isinstance(value, dict | list)]
    return bool(level)


def _too_deep(path: Path) -> JobError:
    return JobError(f"{path} has values in values, more than {_MOST_DEEP} deep: no setting needs that")


_AT = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def _unreadable(path: Path, text: str, why: str) -> JobError:
    """Why a file is no TOML, with its line, as `tomllib` tells it."""
    if not (found := _AT.search(why)):
        return JobError(f"{path} is not valid TOML: {why}")
    what = why[: found.start()]
    if found[1]:
        line = text.split("\n")[int(found[1]) - 1]
        said = f"{path}:{found[1]}: this is not valid TOML: {what} (column {found[2]})"
        return JobError(said, next((hint for pattern, hint in _SLIPS if pattern.search(line)), ""))
    last = text.rstrip().count("\n") + 1
    return JobError(f"{path}:{last}: this is not valid TOML: {what} (at the end of the file)")


def _origins(sections: Mapping[str, Any], path: Path, lines: Lines) -> dict[str, str]:
    """Section and key → the file and the line."""
    tables = ((name, values) for name, values in sections.items() if isinstance(values, dict))
    return {f"{name}.{key}": f"{path}:{lines[name, key]}" for name, values in tables for key in values}


def _by_program(sections: Mapping[str, Any]) -> dict[str, str]:
    tables = ((name, values) for name, values in sections.items() if isinstance(values, dict))
    return {f"{name}.{key}": _BY_PROGRAM for name, values in tables for key in values}


def _checked(
    path: Path, data: dict[str, Any], lines: Lines, origins: dict[str, str], flags: Mapping[str, object]
) -> tuple[JobFile, Mapping[str, str]]:
    variable = _named_protocol(data, flags).base_url_variable
    if (base_url := os.environ.get(variable)) and isinstance(data.setdefault("endpoint", {}), dict):
        data["endpoint"]["base_url"] = base_url
        origins["endpoint.base_url"] = variable
    for name, value in flags.items():
        if value is not None:
            section, key = name.split(".")
            if isinstance(data.setdefault(section, {}), dict):
                data[section][key] = value
                origins[name] = "flag"
    told: dict[str, Callable[[str], str]] = {
        "flag": _flag,
        variable: lambda name: variable,
        _BY_PROGRAM: lambda name: str(path),
    }
    where = Where(path, lines, {name: told[origin](name) for name, origin in origins.items() if origin in told})
    _refuse_huge(data, where)
    try:
        spec = JobFile.model_validate(data)
    except ValidationError as error:
        raise as_job_error(error, where, JobFile) from None
    return spec, origins


def compiled(path: Path, spec: JobFile, origins: Mapping[str, str]) -> Job:
    """The job of what `read_job` gives, with its templates. Raises `JobError`."""
    try:
        job = compile_job(path, spec, origins)
        for each in job.asked:
            check_spoken(each.spec, path)
            check_schema(each)
            check_caching(each)
        check_targets(job)
        check_lanes(job)
    except JobError as error:
        raise placed(error, path, origins) from None
    return job


def _named_protocol(data: Mapping[str, Any], flags: Mapping[str, object]) -> Protocol:
    """The protocol that is named, before anything is checked."""
    section = data.get("endpoint")
    named = flags.get("endpoint.provider") or (section.get("provider") if isinstance(section, dict) else None)
    return next((each for name, each in PROTOCOLS.items() if name == named), PROTOCOLS["gemini"])


def _flag(name: str) -> str:
    """The flag that says a setting."""
    section, key = name.split(".")
    named = {"output.path": "--out", "model.name": "--model"}
    return named.get(name) or (f"--{key}" if section == "limits" else f"--set {key}")


def _refuse_huge(data: Mapping[str, Any], where: Where, place: tuple[str, ...] = ()) -> None:
    """Raise for a whole number that TOML lacks, at any depth: nothing that it is written to or sent in has it."""
    for key, value in data.items():
        if isinstance(value, dict):
            _refuse_huge(value, where, (*place, key))
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            section, *rest = (*place, key)
            at = where.of((*place, key))
            raise JobError(f"{at}: [{section}] {'.'.join(rest)}: the number has more than 64 bits")


def _other_jobs(path: Path) -> str:
    jobs = sorted(str(found) for found in Path("jobs").glob("*.toml"))
    beside = (str(found) for found in path.parent.glob("*.toml"))
    close = difflib.get_close_matches(str(path.with_suffix(".toml")), beside, n=1, cutoff=0.75)
    if close := close or difflib.get_close_matches(str(path), jobs, n=1, cutoff=0.5):
        return f"did you mean {close[0]}?"
    return f"there are {', '.join(jobs)}" if jobs else "paths are relative to the directory you are in"
