"""The emulator's answers to several requests in one prompt, and what a model may do wrong with them."""

import re
from typing import Any, NamedTuple

import orjson

from pipeline.emulator.answers import json_value, summarize
from pipeline.emulator.counting import Tokenizer, count, cut

_STRANGE = "zzzzz"
_ASKS = re.compile(r'.{0,1000}?\{"answers": \[\{"key": ', re.DOTALL)
_AS_JSON = '"answer" is the JSON value'
_ITEM = re.compile(r"\n\n\[\[([a-z]+)\]\]\n(.*?)\n\[\[/\1\]\](?=\n\n\[\[|\Z)", re.DOTALL)


class Pack(NamedTuple):
    """Several requests in one prompt: the key and the text of each, and whether JSON values are asked for."""

    items: tuple[tuple[str, str], ...]
    as_json: bool


def read_pack(text: str) -> Pack | None:
    """The requests in a prompt that asks for `{"answers": [{"key": …`; None for any other."""
    asks = _ASKS.match(text)
    first = _ITEM.search(text, asks.end()) if asks else None
    if asks is None or first is None:
        return None
    items = tuple((found[1], found[2]) for found in _ITEM.finditer(text, first.start()))
    return Pack(items, _AS_JSON in text[: first.start()])


def packed(pack: Pack, schema: Any, limit: int, tokenizer: Tokenizer, fault: str | None) -> tuple[str, str]:
    """The answer to each item, and why it ended, with one of the faults of packs; `limit` in tokens.

    `schema` is that of the whole answer, if one is asked for. Raises what `json_value` does.
    """
    answers = [{"key": key, "answer": _answer(text, pack.as_json, schema)} for key, text in pack.items]
    text = orjson.dumps({"answers": _mixed_up(answers, fault)}).decode()
    if fault == "pack_text":
        text = "\n\n".join(str(each["answer"]) for each in answers)
    elif fault == "pack_cut":
        limit = min(limit, count(text, tokenizer) // 2)
    whole = cut(text, limit, tokenizer)
    return whole, "STOP" if len(whole) == len(text) else "MAX_TOKENS"


def _answer(text: str, as_json: bool, schema: Any) -> Any:
    if not as_json:
        return summarize(text)
    own = schema["properties"]["answers"]["items"]["properties"]["answer"] if schema else None
    return json_value(text, own and {**own, **{name: schema[name] for name in ("$defs",) if name in schema}})


def _mixed_up(answers: list[dict[str, Any]], fault: str | None) -> list[dict[str, Any]]:
    match fault:
        case "pack_shuffled":
            return answers[::-1]
        case "pack_missing":
            return answers[1::2]
        case "pack_doubled":  # the first has two answers, of which nobody knows which is its own
            return [*answers, {"key": answers[0]["key"], "answer": answers[-1]["answer"]}]
        case "pack_wrong_key":
            return [{**answers[0], "key": _STRANGE}, *answers[1:]]
        case _:
            return answers
