"""Every module has a rank and imports only from lower ranks, so that the program reads from the bottom up.

Rank 0 is what everything may know: the exceptions, the records, models, the process and its terminal. Above stand pure
functions (1, 2: the chunker asks the estimator, a job compiles its templates), then what a run is put together from,
each knowing nothing of the others (3: flows, source, store, quota, providers, emulator), what serves or uses several of
those (4: dispatch, cache, plan, report, budget), the durable call and what waits in batches (5), one run (6), the dry
run and a job's beginning (7), what a person sees (8), and the command line (9, 10). Modules of one rank
never import each other. A folder has one rank; its files may import each other, without circles. Imports for types only
count like others.
"""

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pipeline"

RANKS: dict[str, int] = {
    "errors": 0,
    "installed": 0,
    "events": 0,
    "headings": 0,
    "language": 0,
    "machine": 0,
    "meanwhile": 0,
    "models": 0,
    "protocols": 0,
    "records": 0,
    "terminal": 0,
    "toml_lines": 0,
    "urls": 0,
    "values": 0,
    "version": 0,
    "answer_columns": 1,
    "calibration": 1,
    "cells": 1,
    "process": 1,
    "masks": 1,
    "spill": 1,
    "encodings": 1,
    "environment": 1,
    "keys": 1,
    "media": 1,
    "mistakes": 1,
    "tokens": 1,
    "prices": 1,
    "prompts": 1,
    "redaction": 1,
    "schemas": 1,
    "sections": 1,
    "templates": 1,
    "chunking": 2,
    "documents": 2,
    "packing": 2,
    "prefixes": 2,
    "shelves": 2,
    "places": 2,
    "targets": 2,
    "sharedfile": 2,
    "job": 2,
    "objects": 2,
    "flows": 3,
    "source": 3,
    "store": 3,
    "quota": 3,
    "providers": 3,
    "emulator": 3,
    "dispatch": 4,
    "cache": 4,
    "packs": 4,
    "plan": 4,
    "report": 4,
    "budget": 4,
    "calls": 5,
    "batch": 5,
    "run": 6,
    "estimating": 7,
    "fleet": 7,
    "starting": 7,
    "telemetry": 7,
    "console": 8,
    "api": 9,
    "cli": 9,
    "__init__": 10,  # the names of the package
    "__main__": 10,
}

ONLY_IMPORTERS: dict[str, set[str]] = {
    # the run puts the emulator behind the client without a socket; a target is named by its host as httpx writes it
    "httpx": {"providers", "run", "targets"},
    "aiohttp": {"providers", "telemetry"},
    "prometheus_client": {"telemetry"},
    "opentelemetry": {"telemetry"},
    "redis": {"shelves"},
    "obstore": {"objects"},
    "fcntl": {"machine"},  # Windows lacks these two
    "resource": {"machine"},
    "select": {"machine"},
    "rich": {"console"},
    "typer": {"cli"},
    "click": {"cli"},
}

Imports = Mapping[str, set[str]]
"""Module, as "store.run", to all that it imports; modules of the package as "pipeline.store.run"."""


def imports_of(source: str, modules: set[str]) -> set[str]:
    """What a module imports, anywhere in it; `from pipeline import x` is `pipeline.x` where there is such a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level and node.module, "imports name their package in full"
            for alias in node.names:
                within = f"{node.module}.{alias.name}".removeprefix("pipeline.")
                found.add(f"pipeline.{within}" if within in modules else node.module)
    return found


def package_imports() -> Imports:
    modules = {_module(path): path for path in PACKAGE.rglob("*.py")}
    return {module: imports_of(path.read_text("utf-8"), set(modules)) for module, path in modules.items()}


def _module(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def _own(imports: set[str]) -> set[str]:
    return {name.removeprefix("pipeline.") if name != "pipeline" else "__init__" for name in imports if _is_own(name)}


def _is_own(name: str) -> bool:
    return name == "pipeline" or name.startswith("pipeline.")


def _unit(module: str) -> str:
    """The module or folder that has a rank."""
    return module.split(".")[0]


def unranked(imports: Imports) -> Iterator[str]:
    yield from sorted({_unit(module) for module in imports} - set(RANKS))


def upward(imports: Imports) -> Iterator[str]:
    """Imports that do not go down."""
    for module, found in sorted(imports.items()):
        for target in sorted(_own(found)):
            if _unit(module) != _unit(target) and RANKS[_unit(module)] <= RANKS[_unit(target)]:
                yield f"{module} ({RANKS[_unit(module)]}) imports {target} ({RANKS[_unit(target)]})"


def circle(imports: Imports) -> list[str]:
    """The modules of one circle of imports, if there is any."""
    graph = {module: _own(found) - {module} for module, found in imports.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def trespassers(imports: Imports) -> Iterator[str]:
    """Imports of a library that only some may import."""
    for module, found in sorted(imports.items()):
        for library in sorted({name.split(".")[0] for name in found} & set(ONLY_IMPORTERS)):
            if _unit(module) not in ONLY_IMPORTERS[library]:
                yield f"{module} imports {library}"


def test_every_module_has_a_rank() -> None:
    assert list(unranked(package_imports())) == []


def test_every_rank_has_a_module() -> None:
    assert set(RANKS) == {_unit(module) for module in package_imports()}


def test_imports_go_down() -> None:
    assert list(upward(package_imports())) == []


def test_there_are_no_circles() -> None:
    assert circle(package_imports()) == []


def test_a_library_is_imported_where_it_belongs() -> None:
    assert list(trespassers(package_imports())) == []


def test_the_emulator_knows_nothing_of_the_program_that_it_tests() -> None:
    """It reads the headers of files with the same code: tests/test_media.py holds that to other people's libraries."""
    imports = package_imports()
    for module in (module for module in imports if _unit(module) == "emulator"):
        assert {_unit(target) for target in _own(imports[module])} <= {"emulator", "records", "models", "media"}


# ---- the reader itself


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import pipeline.store.run", {"pipeline.store.run"}),
        ("from pipeline import flows", {"pipeline.flows"}),
        ("from pipeline import __version__", {"pipeline"}),
        ("from pipeline.store import run", {"pipeline.store.run"}),
        ("from pipeline.store import Thing", {"pipeline.store"}),
        ("from pipeline.flows import answer as a", {"pipeline.flows"}),
        ("def f():\n    import rich.table", {"rich.table"}),
        ("if TYPE_CHECKING:\n    from httpx import Client", {"httpx"}),
        ("from collections.abc import Mapping", {"collections.abc"}),
    ],
)
def test_an_import_is_read_however_it_is_written(source: str, expected: set[str]) -> None:
    assert imports_of(source, {"store", "store.run", "flows"}) == expected


def test_a_relative_import_is_refused() -> None:
    with pytest.raises(AssertionError, match="in full"):
        imports_of("from . import flows", {"flows"})


@pytest.mark.parametrize(
    ("module", "target", "allowed"),
    [
        ("flows", "pipeline.records", True),
        ("providers.gemini", "pipeline", False),
        ("store.run", "pipeline.store.parts", True),
        ("records", "pipeline.errors", False),
        ("flows", "pipeline.store.run", False),
        ("store.run", "pipeline.quota", False),
        ("job", "pipeline.plan", False),
    ],
)
def test_what_is_upward(module: str, target: str, allowed: bool) -> None:
    assert (list(upward({module: {target}})) == []) is allowed


def test_a_circle_inside_a_folder_is_found() -> None:
    assert set(circle({"store.a": {"pipeline.store.b"}, "store.b": {"pipeline.store.a"}})) == {"store.a", "store.b"}


def test_a_new_file_and_a_stray_import_are_found() -> None:
    assert list(unranked({"utils": set(), "store.new": set()})) == ["utils"]
    assert list(trespassers({"store.run": {"httpx", "rich.table"}})) == [
        "store.run imports httpx",
        "store.run imports rich",
    ]
