"""The sections of a job file that say what is asked: of which table, in which words, of which model."""

import codecs
import io
from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from pipeline.records import MEDIA_KINDS, LaneChoice, MediaKind, Resolution
from pipeline.sections.base import MOST, Section
from pipeline.urls import refuse_credentials

_MOST_PRICE = 1_000_000


MOST_INLINE_MB = 75
"""In base64 100 MB, the most of one request since January 2026."""
Columns = str | list[str] | None
_FILES = "each cell is the path of a file, an https:// address, in a Parquet table the file itself, or a list of those"


class Input(Section):
    """The table that is read."""

    path: str = Field(
        examples=["reviews.csv", "data/*.parquet", "contracts/"],
        description="a file or a glob: .csv .tsv .parquet .jsonl .xlsx, which may lie in object storage: `s3://`, `gs://`,"
        " `az://`; or [documents](documents.md), one a row: a folder, or a file or glob of .txt .md .html .pdf .docx"
        " .epub",
    )
    id: str | None = Field(
        None,
        examples=["id"],
        description="the column that names a row; must be unique. Default: the row number; of documents, `path`",
    )
    text: str | None = Field(None, examples=["body"], description="the column that may be chunked")
    messages: str | None = Field(
        None,
        examples=["conversation"],
        description="the column that holds a conversation, nested or as JSON text, in Gemini's shape (`role`, `parts`)"
        " or OpenAI's (`role`, `content`); it stands before what the template makes",
    )
    image: Columns = Field(None, examples=["photo", ["front", "back"]], description=f"columns with images; {_FILES}")
    audio: Columns = Field(None, examples=["recording"], description="columns with sound, in the same way")
    video: Columns = Field(None, examples=["clip"], description="columns with videos, in the same way")
    pdf: Columns = Field(None, examples=["document"], description="columns with PDFs, in the same way")
    files_root: str | None = Field(
        None,
        examples=["photos"],
        description="the folder that paths in the table start from and may not leave. Default: that of the table",
    )
    fetch_urls: bool = Field(
        False,
        description="fetch what a cell names by an https:// address, from public hosts only, and send that; otherwise"
        " the service is given the address",
    )
    inline_mb: float | None = Field(
        None,
        ge=0,
        le=MOST_INLINE_MB,
        examples=[15],
        description="MB of a row's files that are sent within the request; what is more is uploaded. Default: 15",
    )
    delete_files: bool = Field(
        False, description="delete what was uploaded when the run is finished; otherwise the service does after 48 h"
    )
    where: str | None = Field(
        None, examples=["length(review) > 20"], description="SQL predicate: only the rows for which it holds"
    )
    scans: Literal["send"] | None = Field(
        None,
        examples=["send"],
        description='"send" has scanned [documents](documents.md#scanned-pdfs), PDFs that are pictures without text,'
        " sent as they are. Default: such a row is `invalid`",
    )
    encoding: str | None = Field(
        None,
        examples=["gb18030"],
        description="how a .csv, .tsv, .jsonl or text is encoded, as Python names it: `gb18030`, `utf-16`, `latin-1`."
        " Default: UTF-8",
    )

    sheet: str | None = Field(
        None, examples=["2026"], description="the sheet of an .xlsx that is read. Default: the first that is not hidden"
    )
    separator: str | None = Field(
        None,
        examples=[";"],
        description="the character between the cells of a .csv: `;` or `\\t`. Default: `,`, in a .tsv a tab",
    )

    @property
    def media(self) -> tuple[tuple[MediaKind, str], ...]:
        """Columns with files, each with their kind, in the order in which they are sent."""
        named: dict[MediaKind, Columns] = {kind: getattr(self, kind) for kind in MEDIA_KINDS}
        listed = {kind: [names] if isinstance(names, str) else names or [] for kind, names in named.items()}
        return tuple((kind, name) for kind, names in listed.items() for name in names)

    @model_validator(mode="after")
    def _files_are_named(self) -> "Input":
        for name in ("files_root", "fetch_urls", "inline_mb", "delete_files"):
            if getattr(self, name) not in (None, False) and not self.media and not self.scans:
                raise ValueError(
                    f"{name} is about the files of a row: name their column, as image, audio, video or pdf"
                )
        return self

    _without_credentials = field_validator("path")(refuse_credentials)

    @field_validator("separator")
    @classmethod
    def _one_character(cls, mark: str | None) -> str | None:
        if mark is not None and (len(mark) != 1 or not mark.isascii() or mark in '"\r\n\0'):
            raise ValueError("a separator is one character, such as ';'")
        return mark

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str | None) -> str | None:
        try:
            if name is not None:
                io.TextIOWrapper(io.BytesIO(), encoding=name).read()
                if codecs.lookup(name).name in ("idna", "punycode"):  # how names of hosts are written
                    raise ValueError
        except (LookupError, UnicodeError, ValueError, AssertionError):  # not there; no text; a name with NUL
            raise ValueError(f'"{name}" is no encoding; name one as "gb18030", "utf-16" or "latin-1"') from None
        return name


class ExampleSection(Section):
    """One example of what is asked and how it is to be answered."""

    input: str = Field(
        min_length=1, examples=["Arrived broken."], description="what a row's prompt may be, as it would be sent"
    )
    output: str = Field(min_length=1, examples=["negative"], description="the answer to it")

    @field_validator("input", "output")
    @classmethod
    def _says_something(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("an example is not blank")
        return text


class PromptSection(Section):
    """What is asked about each row."""

    template: str | None = Field(
        None,
        examples=["Summarize in one sentence:\n\n{{ review }}"],
        description="the prompt, in minijinja: `{{ column }}` inserts a column. With `[input] messages` it may be left"
        " out: the conversation then ends with what is asked",
    )
    template_file: str | None = Field(
        None, examples=["summarize.md"], description="the template in a file beside the job file"
    )
    system: str | None = Field(
        None, examples=["Answer in English."], description="system instruction, the same for every row"
    )
    system_file: str | None = Field(
        None, examples=["voice.md"], description="the system instruction in a file beside the job file"
    )
    examples: list[ExampleSection] = Field(
        default_factory=list,
        max_length=256,
        examples=[[{"input": "Arrived broken.", "output": "negative"}]],
        description="`[[prompt.examples]]`, each with `input` and `output`: turns that stand before each prompt that is"
        " made of the template",
    )
    flow: Literal["conversation"] | None = Field(
        None,
        description='"conversation" asks several turns one after the other, each with the answers before it; the last'
        " answer is the row's",
    )
    turns: list[str] = Field(
        default_factory=list,
        max_length=256,
        examples=[["List the claims of:\n{{ text }}", "Which of them is the boldest?"]],
        description="templates of the turns of a conversation, in place of `template`",
    )
    turns_column: str | None = Field(
        None,
        examples=["questions"],
        description="the column that holds further turns of a conversation: a list of texts, or its JSON text; they are"
        " sent as they stand",
    )

    @model_validator(mode="after")
    def _turns_are_asked(self) -> "PromptSection":
        there = self.turns or self.turns_column is not None
        if self.flow is None and there:
            raise ValueError('turns are asked with flow = "conversation"')
        if self.flow and not there:
            raise ValueError('flow = "conversation" needs turns, or turns_column')
        if self.flow and (self.template is not None or self.template_file is not None):
            raise ValueError('with flow = "conversation", turns take the place of the template')
        return self


LEAST_IN_CONTEXT = 256
"""Tokens of a piece, a quarter of which may be headings and marks."""


class Chunk(Section):
    """How a long text is cut."""

    max_tokens: int = Field(ge=64, examples=[2000], description="largest piece of `[input] text`, by estimate")
    overlap_tokens: int = Field(0, ge=0, description="tokens of the previous piece that the next one repeats, at most")
    context: Literal["headings"] | None = Field(
        None,
        description='"headings" puts the headings above a piece, and the end of the one before it (`overlap_tokens`, or'
        " a 16th of `max_tokens`), marked as such, before its text",
    )

    @model_validator(mode="after")
    def _overlap_leaves_progress(self) -> "Chunk":
        if self.overlap_tokens * 2 > self.max_tokens:
            raise ValueError("overlap_tokens must be at most half of max_tokens")
        if self.context and self.max_tokens < LEAST_IN_CONTEXT:
            raise ValueError(f'context = "{self.context}" needs max_tokens of {LEAST_IN_CONTEXT} or more')
        return self


class Reduce(Section):
    """How the parts of one long document become one answer."""

    template: str | None = Field(
        None,
        examples=["Merge these summaries into one:\n\n{{ parts }}"],
        description="`{{ parts }}` inserts the answers to the pieces",
    )
    template_file: str | None = Field(
        None, examples=["merge.md"], description="the template in a file beside the job file"
    )
    system: str | None = Field(
        None,
        examples=["You merge summaries."],
        description="system instruction of the merging calls. Default: that of [prompt]",
    )
    max_input_tokens: int = Field(
        16_000, ge=128, description="room for part answers in one prompt; more of them are merged in levels"
    )
    max_output_tokens: int | None = Field(
        None, ge=1, le=MOST, examples=[1500], description="longest merged answer. Default: that of [model]"
    )


class Refine(Section):
    """How a running summary goes from piece to piece, in place of [reduce]."""

    template: str | None = Field(
        None,
        examples=["So far:\n{{ summary }}\n\nGo on with:\n{{ text }}"],
        description="`{{ summary }}` inserts the answer so far, `{{ text }}` the next piece; the first piece is asked"
        " with [prompt]",
    )
    template_file: str | None = Field(
        None, examples=["refine.md"], description="the template in a file beside the job file"
    )
    system: str | None = Field(
        None,
        examples=["You keep a running summary."],
        description="system instruction of these calls. Default: that of [prompt]",
    )
    max_output_tokens: int | None = Field(
        None, ge=1, le=MOST, examples=[1500], description="longest answer of these calls. Default: that of [model]"
    )


class Prices(Section):
    """Own prices in USD per million tokens, for a model that the tables lack."""

    input: float = Field(ge=0, le=_MOST_PRICE, examples=[0.25], description="of prompts")
    output: float = Field(ge=0, le=_MOST_PRICE, examples=[1.5], description="of answers, thinking included")
    cached: float | None = Field(
        None, ge=0, le=_MOST_PRICE, examples=[0.025], description="of what a cache holds of prompts"
    )
    search: float | None = Field(None, ge=0, le=_MOST_PRICE, examples=[14], description="of 1,000 searches")
    stored: float | None = Field(
        None, ge=0, le=_MOST_PRICE, examples=[1], description="of a million tokens that are kept for an hour"
    )
    flex: float | None = Field(None, gt=0, le=1, examples=[0.5], description="factor of the lane `flex`")
    batch: float | None = Field(None, gt=0, le=1, examples=[0.5], description="factor of the lane `batch`")


_CATEGORIES = ("HARASSMENT", "HATE_SPEECH", "SEXUALLY_EXPLICIT", "DANGEROUS_CONTENT", "CIVIC_INTEGRITY", "JAILBREAK")
_THRESHOLDS = ("BLOCK_LOW_AND_ABOVE", "BLOCK_MEDIUM_AND_ABOVE", "BLOCK_ONLY_HIGH", "BLOCK_NONE", "OFF")


_Budget = Annotated[int, WithJsonSchema({"type": "integer", "minimum": -1, "maximum": MOST})]


class ModelSection(Section):
    """The model and its parameters; what is left out stays at the model's default."""

    name: str = Field(examples=["gemini-3.5-flash-lite"], description="as `pipeline models` names it")
    max_output_tokens: int | None = Field(
        None, ge=1, le=MOST, examples=[800], description="longest answer, thinking included"
    )
    temperature: float | None = Field(
        None, ge=0, le=2, examples=[0.2], description="how freely words are chosen; ignored by Gemini 3.6 and later"
    )
    top_p: float | None = Field(
        None,
        ge=0,
        le=1,
        examples=[0.9],
        description="words are chosen among the likeliest that together have this share; ignored by Gemini 3.6 and"
        " later",
    )
    top_k: int | None = Field(
        None,
        ge=1,
        le=MOST,
        examples=[40],
        description="words are chosen among so many of the likeliest; ignored by Gemini 3.6 and later",
    )
    seed: int | None = Field(
        None, ge=-(2**31), lt=2**31, examples=[42], description="makes answers repeatable, as far as the service can"
    )
    stop: list[str] = Field(
        default_factory=list, examples=[["END"]], description="the answer ends before any of these texts"
    )
    thinking: Literal["minimal", "low", "medium", "high", "xhigh"] | _Budget | None = Field(
        None, examples=["minimal", 0], description="a level, or a budget in tokens for Gemini 2.5 (0 off, -1 automatic)"
    )
    response_mime_type: Literal["text/plain", "application/json", "text/x.enum"] | None = Field(
        None, examples=["application/json"], description='"application/json" makes the answer one JSON text'
    )
    safety: dict[str, str] = Field(
        default_factory=dict,
        examples=[{"HARASSMENT": "BLOCK_ONLY_HIGH"}],
        description='threshold by category, e.g. { HARASSMENT = "BLOCK_ONLY_HIGH" }',
    )
    presence_penalty: float | None = Field(
        None,
        ge=-2,
        le=2,
        examples=[0.5],
        description="above 0, fewer words that were there before; several models refuse it",
    )
    frequency_penalty: float | None = Field(
        None,
        ge=-2,
        le=2,
        examples=[0.5],
        description="the same, by how often a word was there; several models refuse it",
    )
    media_resolution: Resolution | None = Field(
        None, description="how finely images, pages and frames are looked at, and how many tokens each takes"
    )
    lane: LaneChoice = Field(
        "standard",
        description="`flex` and `batch` cost half where a service has them, and `auto` divides the rows so that they"
        " cost least: what is not answered there in time is asked in `standard` ([lanes](lanes.md))",
    )
    stream: bool = Field(
        False, description="have answers sent in pieces, so that no proxy on the way takes a long one for silence"
    )
    labels: dict[str, str] = Field(
        default_factory=dict,
        examples=[{"team": "x"}],
        description='of the request, for your own bookkeeping, e.g. { team = "x" }',
    )
    prefix_cache: Literal["auto"] | bool = Field(
        False,
        examples=["auto"],
        description='"auto" keeps what all prompts begin with, system instruction, tools and examples, in an explicit'
        " cache of the service while the job runs, where that pays; true: wherever it is long enough",
    )
    prices: Prices | None = Field(
        None,
        examples=[{"input": 0.25, "output": 1.5}],
        description="{ input, output, cached } in USD per million tokens, `search` per 1,000, `stored` per million and"
        " hour; `flex` and `batch` are factors of those lanes, where they cost less, as `flex = 0.5`",
    )

    @field_validator("thinking")
    @classmethod
    def _is_a_budget(cls, thinking: str | int | None) -> str | int | None:
        if isinstance(thinking, int) and not -1 <= thinking <= MOST:
            raise ValueError(f"{thinking} is no budget: 0 turns it off, -1 leaves it to the model")
        return thinking

    @field_validator("safety")
    @classmethod
    def _known_filters(cls, safety: dict[str, str]) -> dict[str, str]:
        for name, threshold in safety.items():
            category = name.upper().removeprefix("HARM_CATEGORY_")
            if category not in _CATEGORIES and not category.startswith("IMAGE_"):
                raise ValueError(f'"{name}" is no category: {", ".join(_CATEGORIES)} are')
            if threshold.upper() not in _THRESHOLDS:
                raise ValueError(f'"{threshold}" is no threshold: {", ".join(_THRESHOLDS)} are')
        return safety

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if {"", ".", ".."} & set(name.split("/")) or not name.isprintable() or name != name.strip():
            raise ValueError(f'"{name}" is no name of a model')  # it becomes a part of the address
        return name
