"""What is left in English of a text that a Chinese terminal shows."""

import re

from pipeline.errors import PipelineError
from pipeline.language.catalogue import chinese

_NO_SENTENCE = re.compile(
    r"`[^`\n]*`|\"[^\"\n]*\"|'[^'\n]*'|\[\[?[\w. ]+\]\]?|\{\{.*?\}\}|[({][^)}]*[)}]"
    r"|\S*[/\\._=@<…-]\S*|--?\w+|\b[A-Z]\w*"  # paths, settings, flags, names
)
_FOREIGN = re.compile(
    r"(invalid operation|undefined value|not JSON|conversion from|precision must|cannot compare|unable to parse"
    r"|not allowed in|unknown|unexpected|expected|columns?|document|char|end of|in this|context|numeric type|str"
    r"|marker was reached|file ended before|tried to use|operator|unsupported types|string"
    r"|specification|thrift|recommended|backend|package|install|available|if you want to use|long|must|operation|file"
    r"|number is|depth limit exceeded|infinity when parsed as double"
    r"|cannot convert value to|argument not found for|format|field at|offset|list|text|table|id)\b"
)
"""Words of libraries, and names of settings and types."""


def english_in(text: str) -> list[str]:
    """Runs of three or more English words in a text, but for what is no sentence of ours."""
    return re.findall(r"[a-z]+(?: [a-z]+){2,}", _FOREIGN.sub(" ‖ ", _NO_SENTENCE.sub(" ‖ ", text)))


def said_in_chinese(error: PipelineError) -> None:
    """Fail where something of an error would be in English."""
    for text in filter(None, (error.message, error.hint)):
        told = chinese().translated(text)
        assert not english_in(told), f"{text!r} is told as {told!r}"
