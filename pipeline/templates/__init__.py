"""Prompt templates: minijinja, strict, text inserted as it is."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from minijinja import Environment, TemplateError

from pipeline.errors import JobError
from pipeline.templates import filters, nulls
from pipeline.templates.names import OWN, ROW, Uses, assigned_by, uses
from pipeline.templates.syntax import Statement, parse
from pipeline.values import Fields, Kind, Unreadable, fixed, json_text

CHUNK_VARIABLES = frozenset({"text", "chunk", "chunks"})
REDUCE_VARIABLES = frozenset({"parts"})
REFINE_VARIABLES = CHUNK_VARIABLES | {"summary"}

_QUOTED = re.compile(r"""'([^']+)'|"([^"]+)\"""")
_FUEL = 20_000_000
"""Instructions of one rendering, about 3 s: a loop in a loop over `range(100000)` must not hold up a run."""


@fixed
class Parts(list[str]):
    """Part answers of a reduce prompt: `{{ parts }}` joins them by blank lines; a `for` loop walks them."""

    def __str__(self) -> str:
        return "\n\n".join(self)


class Template:
    """A compiled template. `where` names its place in the job file for errors; a syntax error is a `JobError`."""

    def __init__(self, source: str, where: str) -> None:
        self.source = source
        self.where = where
        self._environment = _environment()
        try:
            self._environment.add_template("prompt", source)
        except TemplateError as error:
            raise JobError(
                f"the template does not parse: {_first_line(error)}\n{where}, line {error.line}",
                '`{{ column }}` inserts a column, `{{ row["order-id"] }}` one whose name is no word; '
                "`{% raw %}…{% endraw %}` keeps braces as they are",
            ) from None
        try:
            self.statements: tuple[Statement, ...] = parse(source)
            self._environment.add_template("prompt", nulls.rewritten(source, self.statements))
            assigned = set().union(*map(assigned_by, self.statements))
        except (RecursionError, TemplateError):  # what is rewritten has more parentheses
            raise self._too_deep() from None
        self.uses = self.uses_of({})
        self._names = (*self.uses.names, *self.uses.perhaps)
        self._row = bool(self.uses.of_row) or ROW in self.uses.whole
        self._own = bool(self.uses.of_own) or OWN in self.uses.whole
        shown = [each.exprs[0].bare() for each in self.statements if each.kind == "emit"]
        self._inserted = [expr.name for expr in shown if expr.kind == "var" and expr.name not in assigned]

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled it is its source: what Jinja makes of that holds code."""
        return Template, (self.source, self.where)

    @cached_property
    def variables(self) -> frozenset[str]:
        """Names that have to come from outside, the keys of `row` and `own` not among them."""
        return frozenset(self.uses.names)

    def uses_of(self, kinds: Mapping[str, Kind | None]) -> Uses:
        """What the template uses when the names from outside are of these kinds."""
        try:
            return uses(self.source, self.statements, kinds)
        except RecursionError:
            raise self._too_deep() from None

    def _too_deep(self) -> JobError:
        return JobError(
            f"the template is nested too deeply\n{self.where}",
            "write it with fewer parentheses, or fewer operators or `elif` in a row",
        )

    def mentions(self, name: str) -> bool:
        """Whether it uses this variable of the job, by itself or as a key of `own`."""
        return name in self.uses.names or name in self.uses.of_own or OWN in self.uses.whole

    def reads(self, columns: Collection[str], own: frozenset[str]) -> frozenset[str]:
        """Those of a table's columns that the template inserts or looks at."""
        if ROW in self.uses.whole:
            return frozenset(columns)
        bare = (self.variables | frozenset(self.uses.perhaps)) - own
        if self._own:
            bare |= {OWN}
        return frozenset(columns) & (bare | frozenset(self.uses.of_row))

    def least_characters(self, fields: Mapping[str, object], own: Mapping[str, object]) -> int:
        """So many characters a rendering has in any case: of the texts that are inserted as they are, and always."""
        values = (own.get(name, fields.get(name)) for name in self._inserted)
        return sum(len(value) for value in values if isinstance(value, str))

    def render(self, fields: Mapping[str, object], own: Mapping[str, object] | None = None) -> str:
        """The prompt's text, of a row's `fields` and the job's `own` variables, which win over columns.

        A null cell becomes nothing. Raises `JobError` when the template fails on these values.
        """
        own = own or {}
        values = {}
        for name in self._names:
            if name in own:
                values[name] = own[name]
            elif name in fields:
                values[name] = fields[name]
        if self._row:
            values[ROW] = Fields(fields)
        if self._own:
            values[OWN] = fields.get(OWN, own)
        for value in fields.values() if self._row else values.values():
            if isinstance(value, Unreadable):
                raise JobError(f"{value}\n{self.where}")
        try:
            return self._environment.render_template("prompt", **values)
        except TemplateError as error:
            place = self.where if error.line is None else f"{self.where}, line {error.line}"
            raise JobError(f"the template fails: {_first_line(error)}\n{place}") from None
        except filters.Unlike as error:
            reason, *line = error.args
            raise JobError(f"the template fails: {reason}\n{', line '.join(map(str, [self.where, *line]))}") from None
        except Exception as error:  # of a method of a value, such as a date's
            reason = f"{type(error).__name__}: {error}"
            raise JobError(f"the template fails: {reason}\n{self.where}") from None


def merged(answers: Sequence[str]) -> dict[str, object]:
    """What a [reduce] template is given."""
    return {"parts": Parts(answers)}


def try_merging(
    template: Template,
    fields: Mapping[str, object],
    own: Callable[[Sequence[str]], Mapping[str, object]] = merged,
) -> None:
    """Raise the `JobError` with which a template fails on this row whatever the answers are that it builds on.

    It is tried on numbers, on texts, on many, and on answers that hold each text that stands in the template; `own` are
    the variables that it is given of them.
    """
    told = "".join(f"{one or other}1" for one, other in _QUOTED.findall(template.source))
    first: JobError | None = None
    for answers in (["1", "2"], ["One: 1", "Two: 2"], ["1"] * 50, [told * 50] * 50):
        try:
            template.render(fields, own(answers))
            return
        except JobError as error:
            first = first or error
    assert first
    raise first


def read_template(inline: str | None, file: str | None, beside: Path, where: str) -> Template:
    """Compile `inline`, or the file that `file` names relative to the job file's directory `beside`."""
    return Template(read_text(inline, file, beside, where), where if file is None else str(beside / file))


def read_text(inline: str | None, file: str | None, beside: Path, where: str) -> str:
    """A text of the job file, or of a file beside it. Raises `JobError` unless exactly one is there and readable."""
    if (inline is None) == (file is None):
        name = where.rsplit(" ", 1)[-1]
        wrong = f"{where} is missing" if inline is None else f"{where} and {name}_file are both there"
        raise JobError(wrong, f"give one of the two: `{name}`, or `{name}_file` for a text beside the job file")
    if inline is not None:
        return inline
    assert file is not None
    try:
        return (beside / file).read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise JobError(f"{beside / file} is not UTF-8 (byte {error.start})\n{where}_file") from None
    except (OSError, ValueError) as error:  # ValueError: a name with NUL
        why = error.strerror if isinstance(error, OSError) else "no file has such a name"
        raise JobError(
            f"cannot read {beside / file}: {why}\n{where}_file", "its path is relative to the job file"
        ) from None


def _environment() -> Environment:
    environment = Environment(undefined_behavior="strict", auto_escape_callback=lambda name: False, fuel=_FUEL)
    environment.add_filter("tojson", json_text)
    own: dict[str, Callable[..., object]] = {f"__{name}": function for name, function in filters.FILTERS.items()}
    own |= {nulls.NUMBER: filters.number, nulls.NUMBERS: filters.numbers, nulls.EACH: filters.each}
    own |= {nulls.HAVING: filters.having, nulls.PLAIN: filters.plain, nulls.FORMATTED: filters.formatted}
    own[nulls.FLOAT] = filters.Float
    for name, function in own.items():
        environment.add_filter(name, function)
    for name, test in (filters.TESTS | {nulls.WHOLE: filters.is_whole, nulls.FRACTION: filters.is_fraction}).items():
        environment.add_test(name, test)
    environment.add_global(nulls.COMPARE, filters.compare)
    return environment


def _first_line(error: TemplateError) -> str:
    return re.sub(r" \(in prompt:\d+\)$", "", str(error).splitlines()[0])
