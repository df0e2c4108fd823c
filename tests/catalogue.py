"""The sentences of the code, and the catalogue held to them; `python tests/catalogue.py` writes the catalogue anew."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from json import dumps, loads
from pathlib import Path

from pipeline.language.catalogue import read

ROOT = Path(__file__).parents[1]
PATH = ROOT / "pipeline/language/zh_CN.po"
UNSPOKEN = ROOT / "tests/data/unspoken.txt"
"""Texts of the code that no terminal shows, or that are no sentences, one a line as JSON."""
_SILENT = re.compile(
    r"api/.*|emulator/.*|telemetry/(metrics|spans|naming)|report/(calls|events|page/.*)|redaction/kinds|providers/phrases"
    r"|installed|console/plans_json|starting/words|language/.*|templates/(nulls|names)"
)
"""Modules of which no sentence reaches a terminal, or stays English there: a list of faults of the emulator."""
OTHERS = (
    # a time of the week
    "Mon {0:n}",
    "Tue {0:n}",
    "Wed {0:n}",
    "Thu {0:n}",
    "Fri {0:n}",
    "Sat {0:n}",
    "Sun {0:n}",
    # kinds of a column's values, each with a place
    "text ({0})",
    "whole numbers ({0})",
    "whole numbers beyond 2^53 ({0})",
    "whole numbers beyond 64 bit ({0})",
    "numbers ({0})",
    "numbers in a form of their own ({0})",
    "true or false ({0})",
    "lists ({0})",
    "objects ({0})",
    # words that stand alone
    "error:",
    "hint:",
    "warning:",
    "stopped:",
    "Continue?",
    "next:",
    "input",
    "encoding",
    "output",
    "path",
    "text",
    "rows",
    "error",
    "hint",
    "warning",
    "stopped",
    "rises",
    "falls",
    "doubles",
    "halves",
    "stays",
    "changes",
    "calls",
    "call",
    "time",
    "finished",
    "running",
    "killed",
    "interrupted",
    "left",
    "sample",
    "pilot",
    "all",
    "lanes",
    "batches",
    "latency",
    "run",
    "unanswered",
    "row",
    "status",
    "before",
    "after",
    "total",
    "live",
    "measured",
    "called in {0:n}",
    "expired {0:n}",
    "cancelled {0:n}",
    "not sent {0:n}",
    "not found {0:n}",
    "line failed {0:n}",
    "not believed {0:n}",
    "turned away {0:n}",
    "last call {0:n}",
    "by service {0:n}",
    "{0:n} answered",
    "{0:n} failed",
    "{0:n} without an answer",
    "{0:n} not believed",
    "{0:n} late",
    "{0:n} answer of {1:n} earlier run",
    "{0:n} answers of {1:n} earlier run",
    "{0:n} answers of {1:n} earlier runs",
    "cancelling",
    "cancelled",
    "expired",
    "succeeded",
    "rpm {0:n}",
    "tpm {0:n}",
    "rpd {0:n}",
    "{0:n} answer of this run",
    "{0:n} answers of this run",
    "model",
    "in",
    "accepted",
    "out",
    "cached",
    "context",
    "gen.",
    "until",
    "what",
    "took",
    "state",
    "lines",
    "changed",
    "new",
    "gone",
    "answer",
    "none",
    "unknown",
    "unset",
    "nothing",
    "system",
    "user",
    "reply:",
    "last:",
    "failed",
    "answered",
    "missing",
    "refused",
    "late",
    "requests",
    "request",
    "tokens",
    "token",
    "comparing",
    "checking",
    "rpm",
    "tpm",
    "{0:n} s",
    "{0:n} h",
    "{0:n} d",
    "{0:n} d {1:n} h",
    "{0} {1:n} of {2:n}",
    "{0} {1:n} of {2:n} (learned)",
    "{0} = {1:n}",
    "{0:n} counted prompt",
    "{0:n} counted prompts",
    "{0:n} earlier run",
    "{0:n} earlier runs",
    "failed {0:n}",
    "answered {0:n}",
    "missing {0:n}",
    "refused {0:n}",
    "late {0:n}",
    "refused for quota {0:n}",
    "turned away in flex {0:n}",
    "offline",
    "rehearsal",
    "costs nothing",
    "required",
    # put together in several steps
    "begins",
    "quota",
    "country",
    "network",
    "key",
    "limits",
    "columns",
    "template",
    "job",
    "Connection timed out",
    "No route to host",
    "Network is unreachable",
    "Connection reset by peer",
    "Bad file descriptor",
    "Temporary failure in name resolution",
    "Name or service not known",
    "the column {0}",
    "in the standard lane, to be there soon",
    "filters are {0}",
    "tests are {0}",
    "{0} is not what it was when this was asked",
    "The ledger of spending {0} cannot be used: {1}",
    "The quota book {0} cannot be used: {1}",
    "The book of batches {0} cannot be used: {1}",
    "The ledger of spending {0} was damaged ({1}): set aside as {2}, and a new one is begun",
    "The quota book {0} was damaged ({1}): set aside as {2}, and a new one is begun",
    "The book of batches {0} was damaged ({1}): set aside as {2}, and a new one is begun",
    "database is locked",
    "disk I/O error",
    "database disk image is malformed",
    "file is not a database",
    "unable to open database file",
    "attempt to write a readonly database",
    "database or disk is full",
    "[Errno {0:n}] {1}: '{2}'",
    "{0:s} kept, {1:n} then",
    "about {0:s} kept, {1:n} then",
    "{0:n} new",
    "{0:n} changed",
    "{0:n} gone",
    "{0:n} the same",
    "{0:n} not reached by the second so far",
    "generation {0:n}",
    "row {0:n} ({1})",
    "row {0:n} ({1}): {2:s}",
    "row {0:n}: {1:s}",
    "What was answered is kept",
    "rpd",
    "{0:n} have pages without text: {1}",
    "{0:n} cannot be read: {1}",
    "{0:n} folders may not be looked into: {1}",
    '{0:n} are scanned, and not sent without `scans = "send"`: {1}',
    "{0:n} are scanned, and sent as PDFs: {1}",
    "{0} and {1} are both unset",
    "{0:n} results are kept there.",
    "{0} was made from a different job or input",
    "{0}, line {1:n}",
    "{0}, line {1:n} to {2:n}",
    # pydantic's, as `mistakes` tells them
    "input should be a valid integer",
    "input should be a valid integer, unable to parse string as an integer",
    "input should be a valid integer, got a number with a fractional part",
    "input should be a valid number",
    "input should be a valid number, unable to parse string as a number",
    "input should be a valid string",
    "input should be a valid boolean",
    "input should be a valid boolean, unable to interpret input",
    "input should be a valid list",
    "input should be a valid tuple",
    "input should be a valid dictionary",
    "input should be a valid dictionary or object to extract fields from",
    "input should be a finite number",
    "input should be greater than {0:n}",
    "input should be greater than or equal to {0:n}",
    "input should be less than {0:n}",
    "input should be less than or equal to {0:n}",
    "input should be {0}",
    "string should have at least {0:n} character",
    "string should have at least {0:n} characters",
    "string should have at most {0:n} characters",
    "string should match pattern '{0}'",
    "list should have at least {0:n} item after validation, not {1:n}",
    "list should have at least {0:n} items after validation, not {1:n}",
    "list should have at most {0:n} items after validation, not {1:n}",
    "value error, {0:s}",
    # those of tomllib and minijinja that a person meets most
    "input should be a valid dictionary or instance of {0}",
    "{0} (at line {1:n}, column {2:n})",
    "{0} (at end of document)",
    "Invalid value",
    "Invalid statement",
    "Expected '=' after a key in a key/value pair",
    "Expected newline or end of document after a statement",
    "Expected ']' at the end of a table declaration",
    "Expected ']]' at the end of an array declaration",
    "Unclosed array",
    "Unclosed inline table",
    "Unterminated string",
    "Cannot overwrite a value",
    "Cannot declare {0} twice",
    "Invalid hex value",
    "Unescaped '\\' in a string",
    "Invalid initial character for a key part",
    "Invalid date or datetime",
    "syntax error: {0}",
    "undefined value: `{0}` is undefined",
    "unexpected end of input, expected end of block",
    "unexpected end of input, expected end of variable block",
    "unexpected character",
    "unknown statement {0}",
    "too many arguments",
    "filter",
    "test",
    "No such device or address",
    "unexpected end of data",
    "unexpected content after document",
    "Input should be greater than or equal to {0:n}",
    "Input should be less than or equal to {0:n}",
    "Input should be a valid integer, unable to parse string as an integer",
    "Input should be a valid number, unable to parse string as a number",
    # typer's
    "No such option: {0}",
    "No such option: {0} Did you mean {1}?",
    "No such option: {0} (Possible options: {1})",
    "No such command '{0}'.",
    "Missing argument '{0}'.",
    "Missing option '{0}'.",
    "Got unexpected extra argument ({0})",
    "Got unexpected extra arguments ({0})",
    "Option '{0}' requires an argument.",
    "Option '{0}' does not take a value.",
    "Invalid value for '{0}': {1:s}",
    "Invalid value for '{0}' / '{1}': {2:s}",
    "'{0}' is not a valid integer.",
    "'{0}' is not a valid int.",
    "'{0}' is not a valid float.",
    "'{0}' is not one of {1}.",
    "{0} is not in the range {1}.",
    # the system's
    "No such file or directory",
    "Permission denied",
    "Too many levels of symbolic links",
    "No space left on device",
    "Is a directory",
    "Not a directory",
    "File name too long",
    "Read-only file system",
    "Input/output error",
    "Too many open files",
    "Disk quota exceeded",
    "Operation not permitted",
    "File exists",
    "Address already in use",
    "Cannot assign requested address",
    "Connection refused",
)
"""Sentences of others, and words that the code puts together."""
_HEADER = '''# Translations of what the terminal says. `python tests/catalogue.py` brings it up to date with the code.
#
# {0} is what is put in; {0:n} a number, {0:s} a sentence or word of ours, which is translated in turn.
msgid ""
msgstr ""
"Language: zh_CN\\n"
"MIME-Version: 1.0\\n"
"Content-Type: text/plain; charset=UTF-8\\n"
"Content-Transfer-Encoding: 8bit\\n"
"Plural-Forms: nplurals=1; plural=0;\\n"'''
_MOST_FORMS = 16
"""Of one f-string, by the conditions in it."""
_OF_NUMBERS = {"count", "money"}
_OF_OURS = {"things", "duration", "_moment", "moment"}
_CALLS_WITHOUT = {"Field", "Option", "Argument", "compile", "sub", "match", "findall", "fullmatch", "search", "execute"}
"""Calls whose texts no terminal shows: help and docs, patterns, SQL."""
_NAMES_WITHOUT = re.compile(r"[A-Z_]*(KEYS|MEANS|CODES|VARIABLES|SQL|TABLES?|PATTERNS?)")
"""Constants whose texts are for the docs, or no sentences."""
_SQL = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|CREATE|BEGIN|PRAGMA|DROP|ALTER)\b")
_SHORT = re.compile(r"`[^`]*`|\{\d+(?::[ns-])?\}")


@dataclass(frozen=True)
class Found:
    """A sentence, where it stands, and what is put into it."""

    text: str
    place: str
    puts: tuple[ast.AST | str, ...]


def sentences(path: Path) -> Iterator[Found]:
    """Those of a module that may reach a terminal."""
    where = path.relative_to(ROOT).as_posix()
    for node in _nodes(ast.parse(path.read_text("utf-8"))):
        for text, puts in _forms(node):
            if is_sentence(text):
                yield Found(text.strip(), where, puts)


def is_sentence(text: str) -> bool:
    """Whether it has words, more than one or with something put in."""
    return " " in text and not _SQL.match(text) and re.search(r"[A-Za-z]{2}", _SHORT.sub("", text)) is not None


def _nodes(node: ast.AST) -> Iterator[ast.expr]:
    match node:
        case ast.Expr(value=ast.Constant()):
            return
        case ast.AnnAssign(target=ast.Name(id=name), value=value):
            if value is not None and not _NAMES_WITHOUT.fullmatch(name):
                yield from _nodes(value)
        case ast.AnnAssign(value=value):
            if value is not None:
                yield from _nodes(value)
        case ast.Assign(targets=[ast.Name(id=name)]) if _NAMES_WITHOUT.fullmatch(name):
            return
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in _CALLS_WITHOUT:
            return
        case ast.Call(
            func=ast.Name(id="things") | ast.Attribute(attr="things"), args=[_, ast.Constant(value=str(name))]
        ):
            yield ast.parse(f'f"{{count(number)}} {name}"', mode="eval").body
            yield ast.parse(f'f"{{count(number)}} {name}s"', mode="eval").body
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            for each in (*node.body, *node.args.defaults, *filter(None, node.args.kw_defaults)):
                yield from _nodes(each)
        case ast.JoinedStr() | ast.BinOp(op=ast.Add()) | ast.Constant(value=str()):
            assert isinstance(node, ast.expr)
            yield node
            for put in _puts(node):
                yield from _nodes(put)
        case _:
            for child in ast.iter_child_nodes(node):
                yield from _nodes(child)


def _pieces(node: ast.expr) -> list[list[object]] | None:
    """The forms of a text, each its pieces: strings and expressions; None where it is no literal text."""
    match node:
        case ast.Constant(value=str(text)):
            return [[text]]
        case ast.JoinedStr(values=values):
            forms: list[list[list[object]]] = []
            for value in values:
                if isinstance(value, ast.FormattedValue):
                    chosen = _pieces(value.value) if isinstance(value.value, ast.IfExp) else None
                    forms.append(chosen or [[value]])
                else:
                    assert isinstance(value, ast.Constant)
                    forms.append([[value.value]])
            return _combined(forms)
        case ast.IfExp(body=body, orelse=orelse):
            one, other = _pieces(body), _pieces(orelse)
            return [*one, *other] if one and other else None
        case ast.BinOp(op=ast.Add(), left=left, right=right):
            one, other = _pieces(left), _pieces(right)
            return _combined([one or [[left]], other or [[right]]]) if one or other else None
    return None


def _combined(forms: list[list[list[object]]]) -> list[list[object]]:
    made = [[piece for form in chosen for piece in form] for chosen in product(*forms)]
    assert len(made) <= _MOST_FORMS, "say it in several sentences"
    return made


def _puts(node: ast.expr) -> list[ast.expr]:
    found = []
    for form in _pieces(node) or [[node.left, node.right] if isinstance(node, ast.BinOp) else []]:
        for piece in form:
            if isinstance(piece, ast.FormattedValue):
                found.append(piece.value)
            elif isinstance(piece, ast.expr):
                found.append(piece)
    return list(dict.fromkeys(found))


def _forms(node: ast.expr) -> Iterator[tuple[str, tuple[ast.AST | str, ...]]]:
    for form in _pieces(node) or []:
        text = ""
        puts: list[ast.AST | str] = []
        for piece in form:
            if isinstance(piece, str):
                for at, part in enumerate(re.split(r"(?<!\{)\{([a-z_]+)\}(?!\})", piece)):  # what `.format` puts in
                    if at % 2:
                        text += f"{{{len(puts)}:s}}"
                        puts.append(part)
                    else:
                        text += part
            else:
                assert isinstance(piece, ast.expr)
                value = piece.value if isinstance(piece, ast.FormattedValue) else piece
                text += f"{{{len(puts)}{_kind(piece)}}}"
                puts.append(value)
        yield text, tuple(puts)


def _kind(piece: ast.expr) -> str:
    if not isinstance(piece, ast.FormattedValue):
        return ""
    spec = ast.unparse(piece.format_spec).strip("f'\"") if piece.format_spec else ""
    if "%a" in spec:  # a time of the week
        return ":s"
    if re.search(r",|%$(?<!%[A-Za-z])|\d[fd]$", spec) and "%H" not in spec:
        return ":n"
    match piece.value:
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return ":n" if name in _OF_NUMBERS else ":s" if name in _OF_OURS else ""
    return ""


def spoken() -> dict[str, list[Found]]:
    """Every sentence of the code that a terminal may show, with where it stands; then those of `OTHERS`."""
    silent = unspoken()
    found: dict[str, list[Found]] = {}
    for each in in_code():
        if each.text not in silent:
            found.setdefault(each.text, []).append(each)
    for text in OTHERS:
        found.setdefault(text, [])
    return found


@cache
def in_code() -> tuple[Found, ...]:
    """The sentences of all modules."""
    return tuple(found for module in modules() for found in sentences(module))


def unspoken() -> set[str]:
    """Texts of the code that no terminal shows."""
    return {loads(line) for line in UNSPOKEN.read_text("utf-8").splitlines()}


def modules() -> list[Path]:
    """Modules whose sentences are in the catalogue."""
    root = ROOT / "pipeline"
    found = sorted(root.rglob("*.py"))
    return [path for path in found if not _SILENT.fullmatch(path.relative_to(root).with_suffix("").as_posix())]


def written(translations: dict[str, str]) -> str:
    """The catalogue with these translations, in the order of the code; what has none yet has an empty one."""
    entries = [_HEADER]
    for text, places in spoken().items():
        lines = [f"#: {' '.join(dict.fromkeys(each.place for each in places))}"] if places else []
        if places and places[0].puts:
            puts = (put if isinstance(put, str) else ast.unparse(put) for put in places[0].puts)
            lines.insert(0, f"#. {', '.join(f'{{{at}}} {put}' for at, put in enumerate(puts))}")
        lines += [f"msgid {dumps(text, ensure_ascii=False)}"]
        lines += [f"msgstr {dumps(translations.get(text, ''), ensure_ascii=False)}"]
        entries.append("\n".join(lines))
    return "\n\n".join(entries) + "\n"


if __name__ == "__main__":
    kept = sorted(dumps(text, ensure_ascii=False) for text in unspoken() & {found.text for found in in_code()})
    UNSPOKEN.write_text("".join(f"{line}\n" for line in kept), "utf-8")
    PATH.write_text(written(read(PATH.read_text("utf-8"))), "utf-8")
    missing = [text for text, told in read(PATH.read_text("utf-8")).items() if not told]
    print(f"{PATH.relative_to(ROOT)}: {len(missing)} without a translation", *missing, sep="\n")
