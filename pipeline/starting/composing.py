"""From what a table is to the text of a job file that asks about each of its rows."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import polars as pl
from minijinja import Environment

from pipeline.errors import JobError
from pipeline.records import MediaKind
from pipeline.starting.profile import LONG_TOKENS, Column, Profile
from pipeline.starting.words import ASKED, FIELD, PART, TITLE, Language, Task
from pipeline.templates import CHUNK_VARIABLES, REDUCE_VARIABLES, Template
from pipeline.templates.names import FUNCTIONS
from pipeline.terminal import one_line

MODEL = "gemini-3.5-flash-lite"
"""The model of every job that is begun: the cheapest that is not about to be switched off."""

SCHEMA = "job.schema.json"
"""The file beside a job by which editors complete and explain its settings; `pipeline settings --schema` prints it."""

PIECE_TOKENS = 16_000
"""A text of more is cut: longer ones are summarized less evenly, and one that fails costs the whole of it."""

_OVERLAP_TOKENS = 200
_MOST_USD = "5.00"
_SHOWN_COLUMNS = 12
_MOST_ANSWER_TOKENS = 60_000  # below what any model answers with at once
_ANSWER_TOKENS: Mapping[Task, int] = {
    "summarize": 800,
    "generate": 500,
    "extract": 800,
    "classify": 200,
    "translate": 500,
    "images": 400,
}


@dataclass(frozen=True)
class Start:
    """What a job is begun from: the input as a job names it, what stands in it, and what is to be done with it."""

    path: str
    profile: Profile
    task: Task
    language: Language  # of the prompt
    comments: Language
    rows: int | None = None
    id: str | None = None
    text: Column | None = None
    longest_tokens: int = 0  # of the texts in that column
    encoding: str | None = None
    separator: str | None = None
    files_root: str | None = None
    sends_scans: bool = False  # documents without a text, as files

    @property
    def is_cut(self) -> bool:
        """Whether long texts are cut; a translation is as long as its text, and no piece of it can be merged."""
        return self.text is not None and self.longest_tokens > PIECE_TOKENS and self.task != "translate"

    @property
    def media(self) -> tuple[MediaKind, str] | None:
        """The kind of the files that are asked about, and their column."""
        column = self.profile.media
        return (column.media, column.name) if self.task == "images" and column and column.media else None

    @property
    def answer_tokens(self) -> int:
        """The longest answer."""
        least = _ANSWER_TOKENS[self.task]
        if self.task != "translate":
            return least
        return min(_MOST_ANSWER_TOKENS, max(least, 2 * self.longest_tokens))

    @property
    def names_text(self) -> bool:
        """Whether the job names its text column: long texts are cut there, and not repeated in the output."""
        return self.is_cut or (self.text is not None and self.text.tokens >= LONG_TOKENS)


def job_text(start: Start, out: str, *, excel: bool, has_schema: bool) -> str:
    """The job file, as TOML; `out` is its output. `has_schema`: the schema of job files lies beside it."""
    asked = ASKED[start.language][start.task]
    names = {each.name for each in start.profile.columns}
    given = {
        "media": start.media[0] if start.media else None,
        "part": PART[start.language] if start.is_cut else "",
        "title": _title(start),
        "value": _value(start, names),
        "fields": "\n".join(_fields(start)),
        "parts": _own("parts", names, REDUCE_VARIABLES),
    }
    columns = start.profile.columns
    shown = [
        {
            "name": one_line(each.name) or '""',
            "sort": each.sort,
            "tokens": f"{each.tokens:,.0f}" if each.tokens >= 10 else "",
            "filled": f"{100 * each.filled:.0f} %" if 0 < each.filled < 0.995 else "",
        }
        for each in columns[:_SHOWN_COLUMNS]
    ]
    return _environment().render_template(
        start.comments,
        schema_file=SCHEMA if has_schema else None,
        sorts=_SORTS[start.comments],
        task=start.task,
        path=quoted(start.path),
        table=one_line(start.path),
        rows=None if start.rows is None else f"{start.rows:,}",
        columns=shown,
        more=max(0, len(columns) - _SHOWN_COLUMNS),
        encoding=start.encoding and quoted(start.encoding),
        separator=start.separator and quoted(start.separator),
        id=None if start.id is None else quoted(start.id),
        text=quoted(start.text.name) if start.names_text and start.text else None,
        media=given["media"],
        media_column=start.media and quoted(start.media[1]),
        files_root=start.files_root and quoted(start.files_root),
        scans=start.sends_scans and not start.media,
        where=quoted(where) if (where := _where(start)) else None,
        system=_block(asked.system),
        template=_block(_filled(asked.template, given)),
        merging=_block(_filled(asked.merging, given)) if start.is_cut else "",
        longest=f"{start.longest_tokens:,}",
        most=PIECE_TOKENS,
        overlap=_OVERLAP_TOKENS,
        model=quoted(MODEL),
        max_output_tokens=start.answer_tokens,
        max_usd=_MOST_USD,
        out=quoted(out),
        excel=excel,
        schema=quoted(asked.schema) if asked.schema else None,
    )


def quoted(text: str) -> str:
    """A text as TOML has it in one line."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def inserted(name: str, own: Sequence[str] = ()) -> str:
    """What a template says to insert a column; `own` are the job's own variables, which win over columns."""
    if name.isidentifier() and name not in own and name not in FUNCTIONS:
        with suppress(JobError):  # a word of minijinja
            if set(Template(f"{{{{ {name} }}}}", "").uses.names) == {name}:
                return f"{{{{ {name} }}}}"
    return f"{{{{ row[{_literal(name)}] }}}}"


def _literal(text: str) -> str:
    """A text as an expression of minijinja."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return (
        '"'
        + "".join(char if char.isprintable() or ord(char) > 0xFFFF else rf"\u{ord(char):04x}" for char in escaped)
        + '"'
    )


def _own(name: str, columns: set[str], own: frozenset[str]) -> str:
    """What a template says to insert a variable of the job's, whatever the table's columns are called."""
    return f'{{{{ own["{name}"] }}}}' if name in columns & own else f"{{{{ {name} }}}}"


def _value(start: Start, names: set[str]) -> str:
    if start.text is None:
        return "\n".join(_fields(start))
    if start.names_text:
        return _own("text", names - {start.text.name}, CHUNK_VARIABLES)
    return inserted(start.text.name)


def _title(start: Start) -> str:
    named, nameless = TITLE[start.language]
    column = start.profile.title
    if column is None or column is start.text:
        return nameless
    return _filled(named, {"title": inserted(column.name, _given_by(start))})


def _given_by(start: Start) -> tuple[str, ...]:
    if not start.names_text:
        return ()
    return (*CHUNK_VARIABLES, *REDUCE_VARIABLES) if start.is_cut else ("text",)


def _fields(start: Start) -> list[str]:
    """Columns that say something, each with its name."""
    told = [each for each in start.profile.columns if each.sort not in ("bytes", "nothing") and each.name != start.id]
    found = (told or [each for each in start.profile.columns if each.sort != "bytes"])[:_SHOWN_COLUMNS]
    return [
        _filled(FIELD[start.language], {"label": _label(each.name), "value": inserted(each.name, _given_by(start))})
        for each in found
    ]


def _label(name: str) -> str:
    """A column's name as words of a prompt: nothing in it is taken for a tag."""
    return one_line(name).replace("{", "(").replace("}", ")").strip()


def _where(start: Start) -> str | None:
    column = start.profile.sorting
    if column is None:
        return None
    if column.sort == "truth":
        return _name(column.name)
    value = column.values[0].replace("'", "''")
    return f"{_name(column.name)} = '{value}'"


def _name(name: str) -> str:
    """A column as SQL names it."""
    if name.isascii() and name.isidentifier():
        with suppress(pl.exceptions.PolarsError):  # a word of SQL
            if pl.sql_expr(name).meta.root_names() == [name]:
                return name
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


def _filled(text: str, given: Mapping[str, str | None]) -> str:
    return _environment().render_str(text, **given)


def _block(text: str) -> str:
    r"""A text as it stands between `\"""` in TOML."""
    return text.replace("\\", "\\\\").replace('"""', '""\\"')


@cache
def _environment() -> Environment:
    """Fills in `<< … >>`, since `{{ … }}` belongs to the job that is written."""
    environment = Environment(
        undefined_behavior="strict",
        auto_escape_callback=lambda name: False,
        variable_start_string="<<",
        variable_end_string=">>",
        block_start_string="<%",
        block_end_string="%>",
        comment_start_string="<#",
        comment_end_string="#>",
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    for language in ("en", "zh"):
        source = files("pipeline.starting").joinpath(f"job.{language}.toml.jinja").read_text("utf-8")
        environment.add_template(language, source)
    return environment


_SORTS: Mapping[Language, Mapping[str, str]] = {
    "en": {
        "text": "text",
        "word": "short text",
        "number": "numbers",
        "time": "dates or times",
        "truth": "true or false",
        "nested": "lists or objects",
        "bytes": "bytes",
        "nothing": "empty",
    },
    "zh": {
        "text": "文本",
        "word": "短文本",
        "number": "数字",
        "time": "日期或时间",
        "truth": "真假",
        "nested": "列表或对象",
        "bytes": "二进制",
        "nothing": "空",
    },
}
"""What the cells of a column are, in words."""
