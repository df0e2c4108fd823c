"""What stands in the columns of a table, told from some of its rows: which names a row, which is text, which sorts."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Literal

import polars as pl

from pipeline.cells import kind as kind_of
from pipeline.cells import leaves, texts
from pipeline.media import TAKEN, form_of
from pipeline.media.forms import HEAD_BYTES
from pipeline.records import MEDIA_KINDS, MediaKind
from pipeline.tokens import estimate

Sort = Literal["text", "word", "number", "time", "truth", "nested", "bytes", "nothing"]
"""What the cells of a column are; a `text` has several words, a `word` is short or has no blanks."""

SUFFIXES: Mapping[str, MediaKind] = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp", ".heic", ".heif"), "image"),
    **dict.fromkeys((".wav", ".mp3", ".aiff", ".aac", ".ogg", ".flac"), "audio"),
    **dict.fromkeys((".mp4", ".mpeg", ".mpg", ".mov", ".avi", ".flv", ".webm", ".wmv", ".3gp"), "video"),
    ".pdf": "pdf",
}
"""How names of files end that a prompt may hold; what a file is, its bytes tell later."""

LONG_TOKENS = 250
"""A column whose texts have more in the mean is one of documents: some 180 words."""

_LOOKED_AT = 200  # texts whose tokens are estimated
_LEAST_WORDS = 4
_LEAST_UNSPACED = 8  # characters of a text in a script that has no blanks, as Chinese, Japanese or Thai
_MOST_ID = 64
_MOST_VALUES = 20
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")
_KANA_HANGUL = re.compile("[\u3041-\u30ff\u1100-\u11ff\uac00-\ud7a3]")
_UNSPACED = re.compile(
    "[\u0e01-\u0eff\u0f40-\u0fbc\u1000-\u109f\u1780-\u17ff\u3005\u3041-\u30ff\u3400-\u4dbf\u4e00-\u9fff]"
)
_NUMBER = re.compile(r"\s*[-+]?[\d,.]*\d(?:[eE][-+]?\d+)?%?\s*")
_TIME = re.compile(r"\s*\d{4}(?:[-/.]\d{1,2}[-/.]|年\d{1,2}月)\d{1,2}")
_YEAR = re.compile(r"(?:19|20)\d\d")  # names the columns of many tables
_LONG_NAME = 24
_LETTER = re.compile(r"[^\W\d_]")
_ID_NAMES = re.compile(
    r"(?:^|[_\W])(?:id|uuid|guid|key|sku|code|no|nr|isbn|doi|url|path|file|filename)$|[a-z]I[dD]$|^(?:index|number)$"
    r"|(?:编号|序号|主键|单号|学号|工号|编码|代码|货号|文件名|路径|編號|番号|번호)$",
    re.IGNORECASE,
)
_TITLE_NAMES = re.compile(r"title|headline|subject|^name$|标题|题目|主题|名称|书名", re.IGNORECASE)


@dataclass(frozen=True)
class Column:
    """One column, as the rows that were looked at have it."""

    name: str
    sort: Sort
    filled: float  # share of the rows that have a value
    distinct: int
    chars: float  # of a value, in the mean
    words: float
    tokens: float  # estimated, in the mean
    han: float  # share of Chinese characters among the letters
    values: tuple[str, ...] = ()  # of a column that sorts rows, the most frequent first
    is_coded: bool = False  # short words with digits, as are made to name rows
    media: MediaKind | None = None  # its cells name or hold such files
    is_text: bool = True  # of a type that holds text: it may be `[input] text`

    @property
    def names_rows(self) -> bool:
        """Whether it is called as ids are."""
        return _ID_NAMES.search(self.name) is not None

    @property
    def is_named_like_a_value(self) -> bool:
        """Whether its name may be a value of it: what the first line of a table without names gives."""
        if self.sort == "number":
            return _NUMBER.fullmatch(self.name) is not None and _YEAR.fullmatch(self.name) is None
        if self.sort == "time":
            return _TIME.match(self.name) is not None
        return self.sort == "text" and len(self.name) > max(_LONG_NAME, self.chars / 2)

    @property
    def is_title(self) -> bool:
        """Whether it is called as titles are, and is short."""
        return self.sort in ("text", "word") and self.chars <= 120 and _TITLE_NAMES.search(self.name) is not None


@dataclass(frozen=True)
class Profile:
    """A table, as the rows that were looked at have it."""

    rows: int  # that were looked at
    columns: tuple[Column, ...]

    @cached_property
    def ids(self) -> tuple[Column, ...]:
        """Columns that may name a row, the likeliest first; whether all rows of the table differ was not looked at."""
        unique = [each for each in self.columns if each.distinct == self.rows and each.filled == 1]
        named = [each for each in unique if each.sort in ("word", "number") and each.names_rows]
        coded = [each for each in unique if each.is_coded and each not in named]
        return (*(each for each in named if each.chars <= _MOST_ID), *coded)

    @cached_property
    def texts(self) -> tuple[Column, ...]:
        """Columns of running text, the one that has most of it first."""
        found = (each for each in self.columns if each.sort == "text" and not each.media)
        return tuple(sorted(found, key=lambda each: -each.chars * each.filled))

    @cached_property
    def media(self) -> Column | None:
        """The first column that names or holds files."""
        return next((each for each in self.columns if each.media), None)

    @cached_property
    def title(self) -> Column | None:
        """The column of titles."""
        return next((each for each in self.columns if each.is_title and each.filled > 0.95), None)

    @cached_property
    def sorting(self) -> Column | None:
        """The first column of few values, by which rows could be chosen."""
        return next((each for each in self.columns if len(each.values) > 1), None)

    @property
    def is_chinese(self) -> bool:
        """Whether most of what stands there is Chinese; where there is text, it decides."""
        judged = self.texts or [each for each in self.columns if each.sort == "word"]
        chars = sum(each.chars * each.filled for each in judged)
        if chars == 0:
            return any(_han_share(each.name) > 0.5 for each in self.columns)
        return sum(each.han * each.chars * each.filled for each in judged) / chars > 0.3


def profile_of(frame: pl.DataFrame, json_columns: Collection[str] = ()) -> Profile:
    """What stands in some rows of a table; the cells of `json_columns` are JSON texts."""
    return Profile(frame.height, tuple(_column(frame[name], name in json_columns) for name in frame.columns))


def media_of(names: Sequence[str]) -> MediaKind | None:
    """Of which kind the files are that most of these names, paths or addresses are of; None: of none."""
    kinds = [SUFFIXES.get(PurePath(name.partition("?")[0]).suffix.lower()) for name in names]
    best = max(MEDIA_KINDS, key=kinds.count)
    return best if kinds and 2 * kinds.count(best) > len(kinds) else None


def _column(series: pl.Series, is_json: bool) -> Column:
    there = series.drop_nulls()
    filled = len(there) / len(series) if len(series) else 0.0
    if any(leaf in (pl.Binary, pl.Object) for leaf in leaves(series.dtype)):
        held = _held(there) if series.dtype == pl.Binary else None
        return Column(series.name, "bytes", filled, 0, 0, 0, 0, 0, media=held, is_text=False)
    kind = kind_of(series.dtype)
    cells = [text for text in texts(there) if text is not None and text.strip()]
    filled = len(cells) / len(series) if len(series) else 0.0
    if not cells:
        return Column(series.name, "nothing", 0.0, 0, 0, 0, 0, 0, is_text=kind == "text" and not is_json)
    chars, words = _mean(map(len, cells)), _mean(len(text.split()) for text in cells)
    han = _han_share("".join(text[:1000] for text in cells[:_LOOKED_AT]))
    sort: Sort = "nested" if kind is None or is_json else "word" if kind == "text" else kind
    media = None
    if sort == "word":
        if all(map(_NUMBER.fullmatch, cells)):
            sort = "number"
        elif all(map(_TIME.match, cells)):
            sort = "time"
        elif (media := media_of(cells)) is None and (words >= _LEAST_WORDS or _unspaced(cells) >= _LEAST_UNSPACED):
            sort = "text"
    distinct = len(set(cells))
    is_sorting = sort in ("word", "truth") and distinct <= _MOST_VALUES and 2 * distinct <= len(cells)
    return Column(
        series.name,
        sort,
        filled,
        distinct,
        chars,
        words,
        _mean(estimate(text) for text in cells[:_LOOKED_AT]),
        han,
        tuple(sorted(set(cells), key=lambda value: (-cells.count(value), value))) if is_sorting else (),
        sort == "word" and words == 1 and chars <= _MOST_ID and not media and _have_digits(cells),
        media,
        is_text=kind == "text" and not is_json,
    )


def _held(column: pl.Series) -> MediaKind | None:
    """Of which kind the files are that lie in a column."""
    forms = {form_of(cell[:HEAD_BYTES]) for cell in column.head(20).to_list()}
    return next((kind for kind, taken in TAKEN.items() if forms and forms <= set(taken)), None)


def _have_digits(cells: Sequence[str]) -> bool:
    return sum(any(map(str.isdigit, cell)) for cell in cells) > 0.8 * len(cells)


def _unspaced(cells: Sequence[str]) -> float:
    """Characters of scripts without blanks in a cell, in the mean."""
    return _mean(len(_UNSPACED.findall(text[:1000])) for text in cells[:_LOOKED_AT])


def _han_share(text: str) -> float:
    """Share of Chinese characters among the letters; 0 of a text that is Japanese or Korean."""
    letters = len(_LETTER.findall(text))
    if not letters or len(_KANA_HANGUL.findall(text)) > 0.05 * letters:
        return 0.0
    return len(_HAN.findall(text)) / letters


def _mean(numbers: Iterable[int]) -> float:
    found = list(numbers)
    return sum(found) / len(found) if found else 0.0
