"""What is wrong with a template before any row is read: names, functions, and values that are never alike."""

import difflib
import json
import re
from collections.abc import Collection, Mapping

from minijinja import Environment, TemplateError

from pipeline.errors import JobError
from pipeline.templates import Template
from pipeline.templates.names import FUNCTIONS, OWN, ROW, Given, Unlike
from pipeline.templates.nulls import BY_NAME
from pipeline.templates.syntax import words
from pipeline.values import Kind

_KINDS: dict[Kind, str] = {
    "text": "text",
    "number": "a number",
    "time": "a date or time",
    "truth": "true or false",
}


_FALSE = frozenset({"false", "f", "no", "n", "0", "off"})
_TRUE = frozenset({"true", "t", "yes", "y", "1", "on"})


def check_template(
    template: Template, columns: Mapping[str, Kind | None], own: frozenset[str], text: str | None = None
) -> None:
    """Raise `JobError` for what fails, or is the same, on every row of a table with these columns, with a suggestion.

    `own` are the job's own variables, `text` is the column that is `[input] text`.
    """
    _check_syntax(template)
    _check_names(template, columns, own)
    _check_arguments(template)
    _check_both(template, columns, own, text)
    own_kinds: dict[str, Kind | None] = {"text": "text", "chunk": "number", "chunks": "number", "parts": None}
    own_kinds["summary"] = "text"
    kinds = {name: kind for name, kind in columns.items() if name not in own}
    kinds |= {name: own_kinds[name] for name in own} | {f"{OWN}.{name}": own_kinds[name] for name in own}
    kinds |= {f"{ROW}.{name}": kind for name, kind in columns.items()}
    uses = template.uses_of(kinds)
    for unlike in uses.unlike:
        raise _never_alike(template, unlike)
    for name, line in uses.spelled.items():
        raise JobError(
            f"the template walks `{name}`, which is text, character by character\n{template.where}, line {line}",
            f'`{name}.split(",")` are its parts, `{name}.splitlines()` its lines, `{name}|list` its characters',
        )


def check_truths(template: Template, name: str, texts: Collection[str]) -> None:
    """Raise `JobError` when a column decides a condition by being there, and its texts say true and false."""
    said = {text.strip().lower() for text in texts}
    line = template.uses.truths.get(name)
    if line is not None and said & _FALSE and said <= _FALSE | _TRUE:
        other = min(text for text in texts if text.strip().lower() in _FALSE)
        raise JobError(
            f"the column `{name}` is text, so that `if {name}` holds for `{other}` too\n{template.where}, line {line}",
            f'`{name} == "{other}"` compares with the word',
        )


def _check_syntax(template: Template) -> None:
    uses = template.uses
    for name, line in uses.reading.items():
        raise JobError(
            f"the template uses {{% {name} %}}: it cannot read another template\n{template.where}, line {line}",
            "put the text itself there",
        )
    environment = Environment()
    for what, names in (("filter", uses.filters), ("test", uses.tests)):
        for name, line in names.items():
            if not environment.eval_expr(f"name is {what}", name=name):
                raise JobError(
                    f"`{name}` is not a {what} of minijinja\n{template.where}, line {line}", _similar(name, what)
                )


def _check_arguments(template: Template) -> None:
    environment = Environment()
    for given, line in template.uses.given.items():
        if wrong := _unlike_form(environment, given):
            raise JobError(
                f"`{given.name}` is given {wrong}\n{template.where}, line {line}",
                "https://docs.rs/minijinja has the arguments of each filter and test",
            )


def _unlike_form(environment: Environment, given: Given) -> str:
    """What is wrong with the number or the names of the arguments, whatever their values are."""
    names = [f"{name}=" for name in BY_NAME.get(given.name, ())[: given.positional]]
    names += [""] * (given.positional - len(names))
    for value in ("'a'", "1"):
        arguments = [f"{name}{value}" for name in (*names, *(f"{key}=" for key in given.keywords))]
        form = f"({', '.join(arguments)})" if arguments else ""
        try:
            environment.eval_expr(f"{value} {given.mark} {given.name}{form}")
        except TemplateError as error:
            if found := re.match("too many arguments|missing argument", str(error)):
                return found[0].replace("missing argument", "too few arguments")
    return ""


def _check_names(template: Template, columns: Mapping[str, Kind | None], own: frozenset[str]) -> None:
    uses = template.uses
    for name, line in sorted(uses.names.items()):
        if name not in columns and name not in own:
            raise JobError(
                f"the template uses {{{{ {name} }}}}, which is not a column\n{template.where}, line {line}",
                _nearest(name, columns, own, template.source),
            )
    for name, line in sorted(uses.calls.items()):
        place = f"{template.where}, line {line}"
        if name not in FUNCTIONS:
            what = "a column, not a function" if name in columns or name in own else "not a function"
            raise JobError(
                f"the template calls {name}(…), which is {what}\n{place}",
                f"functions are {', '.join(sorted(FUNCTIONS))}",
            )
        if name in uses.names or name in uses.perhaps:
            raise JobError(
                f"`{name}` is a function and a column\n{place}", f'`{{{{ row["{name}"] }}}}` inserts the column'
            )
    for name, line in sorted(uses.of_row.items()):
        if name not in columns:
            raise JobError(
                f'the template uses {{{{ row["{name}"] }}}}, which is not a column\n{template.where}, line {line}',
                _nearest(name, columns, frozenset(), ""),
            )
    for name, line in sorted(uses.of_own.items()):
        if name not in own and OWN not in columns:
            raise JobError(
                f'the template uses {{{{ own["{name}"] }}}}: there is no such thing\n{template.where}, line {line}',
                f"it has {', '.join(sorted(own))}" if own else "[input] text or [chunk] gives it variables of its own",
            )


def _check_both(template: Template, columns: Mapping[str, Kind | None], own: frozenset[str], text: str | None) -> None:
    """Refuse a name that is a column and a variable of the job, or a column and `row`."""
    uses = template.uses
    for name in sorted(own & columns.keys() & template.variables):
        if name == "text" and text == "text":
            continue
        line = uses.names[name]
        means = f"`{{{{ {text} }}}}`" if name == "text" and own == {"text"} else f'`{{{{ own["{name}"] }}}}`'
        if OWN in columns:
            means = f"rename the column, and `{{{{ {name} }}}}`"
        what = (
            "the answers to the pieces"
            if name == "parts"
            else "the answer so far"
            if name == "summary"
            else "[input] text"
            if name == "text"
            else "what [chunk] counts"
        )
        raise JobError(
            f"{{{{ {name} }}}} may be the column `{name}` or {what}\n{template.where}, line {line}",
            f'`{{{{ row["{name}"] }}}}` is the column, {means} the other',
        )
    nested = columns.get(ROW, "text") is None
    if ROW in columns and (ROW in uses.whole or (nested and uses.of_row.keys() - {ROW})):
        line = uses.whole.get(ROW) or min(uses.of_row.values())
        raise JobError(
            f"`row` may be the column `row` or all columns by name\n{template.where}, line {line}",
            '`{{ row["row"] }}` is the column',
        )


def _never_alike(template: Template, unlike: Unlike) -> JobError:
    kinds = set(unlike.kinds)
    left, right = unlike.kinds
    place = f"{template.where}, line {unlike.line}"
    cast = unlike.left if left != "number" else unlike.right
    if unlike.left == unlike.right:
        message = f"the template takes `{unlike.left}` for a number: it is {_KINDS[left]}"
    else:
        message = f"`{unlike.left}` is {_KINDS[left]} and `{unlike.right}` is {_KINDS[right]}: they are never alike"
    hint = f"`{cast}|float` makes it a number, `{cast}|int` a whole one"
    if "truth" in kinds:
        name, other = (unlike.left, unlike.right) if left == "truth" else (unlike.right, unlike.left)
        hint = f"write `{{% if {name} %}}` or `{{% if not {name} %}}`"
        if name.lower() in ("true", "false"):
            hint = f'`{other} == "{name}"` compares with the word'
    elif "time" in kinds:
        name = unlike.left if left == "time" else unlike.right
        hint = f'`{name}|string` is its text, which compares with another such as "2024-01-31"'
    elif cast[:1] in ("'", '"'):
        number = cast[1:-1].strip()
        hint = f"`{unlike.left if left == 'number' else unlike.right}|string` is its text"
        if number.replace(".", "", 1).removeprefix("-").isdigit():
            hint = f"compare with the number itself, without quotes: `{number}`"
    return JobError(f"{message}\n{place}", hint)


def _nearest(name: str, columns: Collection[str], own: Collection[str], source: str) -> str:
    names = ", ".join(columns)
    if name in FUNCTIONS:
        return f"`{name}` is a function: call it, `{name}(…)`; columns are {names}"
    (only,) = columns if len(columns) == 1 else ("",)
    for mark in (";", "\t", "|"):
        if name in (part.strip('" ') for part in only.split(mark)):
            return f"the file seems to separate cells by {mark!r}: `[input] separator = {json.dumps(mark)}` reads it"
    for column in columns:
        if not column.isidentifier() and (column in source or name in re.split(r"\W+", column)):
            return f'the column `{column}` is inserted by `{{{{ row["{column}"] }}}}`'
    close = difflib.get_close_matches(name, [*columns, *own], n=1)
    if not close:
        return f"columns are {names}"
    column = close[0]
    if not column.isidentifier():
        return f'did you mean `{{{{ row["{column}"] }}}}`? columns are {names}'
    return f"did you mean `{column}`? columns are {names}"


def _similar(name: str, what: str) -> str:
    known = _FILTERS if what == "filter" else _TESTS
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{close[0]}`?" if close else f"{what}s are {', '.join(sorted(known))}"


_FILTERS = words(
    "abs batch capitalize default dictsort first float format groupby indent int items join last length lines list "
    "lower map max min pluralize reject rejectattr replace reverse round select selectattr slice sort split string "
    "striptags sum title tojson trim truncate unique upper urlencode wordwrap zip"
)
_TESTS = words(
    "boolean defined divisibleby endingwith even float in integer iterable lower mapping none number odd sequence "
    "startingwith string undefined upper"
)
