"""The schema that a job names for its answers: in the job file, in a file beside it, or a class of pydantic."""

import difflib
import importlib
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import orjson

from pipeline.errors import JobError
from pipeline.mistakes import stands_at
from pipeline.schemas import Schema, SchemaError, schema_of
from pipeline.schemas.checks import Checks, checks_of
from pipeline.sections import JobFile

_MOST_TOLD = 400  # characters of what a module says


def read_schema(path: Path, spec: JobFile, origins: Mapping[str, str]) -> Schema | None:
    """What `[output] schema` says, for the job file at `path`. Raises `JobError` for one that cannot be asked for."""
    written = spec.output.schema_
    if written is None:
        return None
    where = f"{stands_at(path, origins, 'output.schema')}, [output] schema"
    if spec.model.response_mime_type not in (None, "application/json"):
        raise JobError(
            f"[model] response_mime_type is {spec.model.response_mime_type}, and a schema is for JSON\n{where}",
            "leave [model] response_mime_type out",
        )
    try:
        return schema_of(_named(written, path.parent, where) if isinstance(written, dict) else written)
    except SchemaError as error:
        raise JobError(
            f"{error.message}\n{where}", error.hint or "docs/structured.md shows how it is written"
        ) from None


def read_checks(path: Path, spec: JobFile, schema: Schema | None) -> Checks | None:
    """What `[[check]]` says, compiled. Raises `JobError` for a condition that cannot be judged."""
    if not spec.check:
        return None
    columns = schema.columns(spec.output.prefix) if schema else ()
    try:
        return checks_of([check.holds for check in spec.check], columns)
    except SchemaError as error:
        raise JobError(f"{error.message}\n{path}, [[check]]", error.hint) from None


def _named(table: Mapping[str, Any], beside: Path, where: str) -> Mapping[str, Any]:
    """A table of JSON Schema, or the one that the table says where to find."""
    for name, read in (("file", _of_file), ("class", _of_class)):
        if isinstance(table.get(name), str):
            if others := table.keys() - {name}:
                raise JobError(f"`{min(others)}` stands beside `{name}`, which says all of it\n{where}", "leave it out")
            return read(table[name], beside, where)
    for name in table:
        if close := difflib.get_close_matches(name, ("file", "class"), n=1, cutoff=0.7):
            raise JobError(f"`{name}` is no word of a schema\n{where}", f"did you mean `{close[0]}`?")
    return table


def _of_file(name: str, beside: Path, where: str) -> Mapping[str, Any]:
    path = beside / name
    try:
        schema = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise JobError(f"{path} is no JSON: {error}\n{where}") from None
    except (OSError, ValueError) as error:  # ValueError: a name with NUL
        why = error.strerror if isinstance(error, OSError) else "no file has such a name"
        raise JobError(f"cannot read {path}: {why}\n{where}", "its path is relative to the job file") from None
    if not isinstance(schema, dict):
        raise JobError(f"{path} holds no JSON object\n{where}")
    return schema


def _of_class(name: str, beside: Path, where: str) -> Mapping[str, Any]:
    """The schema of `package.module:Model`, imported from the job file's folder too."""
    module, _, attribute = name.partition(":")
    if not (attribute and all(part.isidentifier() for part in (*module.split("."), *attribute.split(".")))):
        raise JobError(f"class = {name!r} names no class\n{where}", 'it is written "package.module:Model"')
    folder, before, searched = str(beside.resolve()), set(sys.modules), sys.path[:]
    sys.path.insert(0, folder)
    try:
        with redirect_stdout(sys.stderr):  # ours is for what was asked for, and may be JSON
            found: Any = importlib.import_module(module)
            for part in attribute.split("."):
                found = getattr(found, part)
            schema = found.model_json_schema() if hasattr(found, "model_json_schema") else None
    except AttributeError:
        raise JobError(f"class = {name!r}: {module} has no `{attribute}`\n{where}") from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever the module does when it is imported: it may end the program
        why = " ".join(str(error).split())[:_MOST_TOLD]
        raise JobError(
            f"class = {name!r}: {module} cannot be used: {type(error).__name__}: {why}\n{where}",
            f"it is looked for where Python looks, and in {folder}",
        ) from None
    finally:
        sys.path[:] = searched
        for other in set(sys.modules) - before:  # another job's folder may have a module of the same name
            if str(getattr(sys.modules[other], "__file__", None) or "").startswith(folder):
                del sys.modules[other]
    if not isinstance(schema, dict):
        raise JobError(f"class = {name!r} is no class of pydantic.BaseModel: it has no JSON Schema\n{where}")
    return schema
