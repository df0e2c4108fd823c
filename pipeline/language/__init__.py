"""In which language a terminal is spoken to: English, or Chinese where the locale or `PIPELINE_LANG` says so.

The sentences stand in the code, in English. What prints them translates them, whole sentences with what is put into
them, by the catalogue `zh_CN.po`; JSON, files and columns never pass here. English asks for no catalogue.
"""

import os
from collections.abc import Mapping
from typing import Literal

Language = Literal["en", "zh"]

VARIABLE = "PIPELINE_LANG"
"""Environment variable that wins over the locale: `zh` or `en`."""


class Data(str):
    """Text of the user, or of a service: shown as it is, whatever it says."""

    __slots__ = ()


def current(environ: Mapping[str, str] = os.environ) -> Language:
    """The language that the environment asks for; English where it asks for one that we do not speak."""
    if asked := environ.get(VARIABLE, "").strip():
        return _known(asked) or "en"
    locale = environ.get("LC_ALL") or environ.get("LC_MESSAGES") or environ.get("LANG") or ""
    if locale.partition(".")[0] in ("", "C", "POSIX"):
        return "en"
    wanted = (environ.get("LANGUAGE") or locale).split(":")
    name, _, encoding = locale.partition("@")[0].partition(".")
    if encoding and encoding.lower().replace("-", "") != "utf8":  # we write UTF-8: it would be garbled there
        return "en"
    return next((found for each in (*wanted, name) if (found := _known(each))), "en")


def spoken(text: str) -> str:
    """`text` as the terminal says it: a sentence of ours in its language, `Data` and what is not known as it is."""
    if isinstance(text, Data) or current() == "en":
        return text
    from pipeline.language.catalogue import chinese

    return chinese().translated(text)


def _known(locale: str) -> Language | None:
    name = locale.strip().lower().replace("-", "_").partition(".")[0].partition("_")[0]
    return "zh" if name == "zh" else "en" if name == "en" else None
