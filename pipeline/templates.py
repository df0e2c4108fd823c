"""Prompt templates: minijinja, strict, text inserted as it is."""

import difflib
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from minijinja import Environment, TemplateError

from pipeline.errors import JobError

CHUNK_VARIABLES = frozenset({"text", "chunk", "chunks"})
REDUCE_VARIABLES = frozenset({"parts"})


class Parts(list[str]):
    """Part answers of a reduce prompt: `{{ parts }}` joins them by blank lines; a `for` loop walks them."""

    def __str__(self) -> str:
        return "\n\n".join(self)


class Template:
    """A compiled template. `where` names its place in the job file for errors; a syntax error is a `JobError`."""

    def __init__(self, source: str, where: str) -> None:
        self.source = source
        self.where = where
        self._environment = Environment(undefined_behavior="strict", auto_escape_callback=lambda name: False)
        try:
            self._environment.add_template("prompt", source)
        except TemplateError as error:
            raise JobError(
                f"the template does not parse: {_first_line(error)}\n{where}, line {error.line}",
                "`{{ column }}` inserts a column; `{% raw %}…{% endraw %}` keeps braces as they are",
            ) from None
        self.variables: frozenset[str] = frozenset(self._environment.undeclared_variables_in_template("prompt"))

    def render(self, values: Mapping[str, object]) -> str:
        """The prompt's text; a null cell becomes nothing. Raises `JobError` when the template fails on these values."""
        try:
            return self._environment.render_template("prompt", **{name: _cell(value) for name, value in values.items()})
        except TemplateError as error:
            raise JobError(f"the template fails: {_first_line(error)}\n{self.where}, line {error.line}") from None


def read_template(inline: str | None, file: str | None, beside: Path, where: str) -> Template:
    """Compile `inline`, or the file that `file` names relative to the job file's directory `beside`."""
    return Template(read_text(inline, file, beside, where), where if file is None else str(beside / file))


def read_text(inline: str | None, file: str | None, beside: Path, where: str) -> str:
    """A text of the job file, or of a file beside it. Raises `JobError` unless exactly one is there and readable."""
    if (inline is None) == (file is None):
        name = where.rsplit(" ", 1)[-1]
        wrong = "is missing" if inline is None else f"and {name}_file are both there"
        raise JobError(
            f"{where} {wrong}", f"give one of the two: `{name}`, or `{name}_file` for a text beside the job file"
        )
    if inline is not None:
        return inline
    assert file is not None
    try:
        return (beside / file).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise JobError(f"{beside / file} is not UTF-8 (byte {error.start})\n{where}_file") from None
    except OSError as error:
        raise JobError(
            f"cannot read {beside / file}: {error.strerror}\n{where}_file", "its path is relative to the job file"
        ) from None


def check_variables(template: Template, columns: Sequence[str], extra: frozenset[str]) -> None:
    """Raise `JobError` for a variable that is neither a column nor one of `extra`, with a suggestion."""
    for name in sorted(template.variables - set(columns) - extra):
        close = difflib.get_close_matches(name, [*columns, *extra], n=1)
        names = ", ".join(columns)
        raise JobError(
            f"the template uses {{{{ {name} }}}}, which is not a column\n{template.where}",
            f"did you mean `{close[0]}`? columns are {names}" if close else f"columns are {names}",
        )


def _cell(value: object) -> object:
    """`value` for minijinja, which would make a decimal a float: 1.50 must not become 1.5."""
    return "" if value is None else str(value) if isinstance(value, Decimal) else value


def _first_line(error: TemplateError) -> str:
    return re.sub(r" \(in prompt:\d+\)$", "", str(error).splitlines()[0])
