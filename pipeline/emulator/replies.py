"""From a request to the answer the emulator gives: text, length, thinking, and the faults inside a 200."""

from typing import Any

import orjson

from pipeline.emulator import bodies
from pipeline.emulator.answers import json_value, summarize
from pipeline.emulator.counting import Tokenizer, count, cut
from pipeline.emulator.packs import Pack, packed, read_pack
from pipeline.emulator.tools import use, written
from pipeline.emulator.wire import Answer, Ask

_THOUGHT = "**Reading the prompt**\n\nThe most central sentences are picked."
_SIGNATURE = "RW11bGF0b3I="  # base64, to be returned unchanged in a later turn


def answer_to(
    ask: Ask,
    output_limit: int,
    thinking_tokens: int,
    tokenizer: Tokenizer,
    fault: str | None,
    part_tokens: int | None = None,
) -> Answer:
    """The answer to `ask`; `output_limit` is the model's own, in tokens with thinking; `fault` one of `ANSWERS`.

    One of more than `part_tokens` goes on in another request.
    """
    at, before = ask.resumed
    limit = min(ask.config.get("maxOutputTokens") or output_limit, output_limit) - before
    thoughts = 0 if before or ask.thinking.get("thinkingBudget") == 0 else thinking_tokens
    if fault == "max_tokens_empty":
        return Answer((), "MAX_TOKENS", 0, limit)
    if fault in ("empty", "safety"):
        return Answer((), "STOP" if fault == "empty" else "SAFETY", 0, min(thoughts, limit))
    if thoughts >= limit:
        return Answer((), "MAX_TOKENS", 0, limit)
    if part_tokens is not None and thoughts >= part_tokens:
        return Answer((), "CONTINUATION", 0, thoughts, fields={"continuationToken": ask.token(at, thoughts)})
    pack = read_pack(ask.text)
    if pack is not None:
        text, finish_reason = _packed(pack, ask, limit - thoughts, tokenizer, fault)
        return Answer(_parts(text, bool(thoughts), ask), finish_reason, count(text, tokenizer), thoughts)
    whole = _until_stop(_misshaped(_text(ask), fault, ask), ask.config.get("stopSequences") or ())
    used = use(ask.fields, ask.text, whole)
    if used.call is not None and fault != "recitation":
        part = {**used.call, **({"thoughtSignature": _SIGNATURE} if thoughts else {})}
        return Answer((part,), "STOP", count(written(used.call), tokenizer), thoughts)
    room = limit if part_tokens is None else min(limit, part_tokens)
    text = cut(whole[at:], room - thoughts, tokenizer)
    finish_reason, fields = "STOP" if at + len(text) == len(whole) else "MAX_TOKENS", dict(used.fields)
    if finish_reason == "MAX_TOKENS" and room < limit:
        finish_reason = "CONTINUATION"
        fields["continuationToken"] = ask.token(at + len(text), before + thoughts + count(text, tokenizer))
    if fault == "recitation":
        text, finish_reason = text[: len(text) // 2], "RECITATION"
    parts = [*used.parts, *_parts(text, bool(thoughts), ask)]
    return Answer(parts, finish_reason, count(text, tokenizer), thoughts, used.input_tokens, fields)


def _text(ask: Ask) -> str:
    mime_type = ask.config.get("responseMimeType")
    try:
        if mime_type == "application/json":
            return orjson.dumps(json_value(ask.text, ask.schema)).decode()
        if mime_type == "text/x.enum" and ask.schema:
            return str(json_value(ask.text, ask.schema))
    except (TypeError, ValueError, AttributeError, ArithmeticError):  # such as a least value of more than 64 bits
        raise bodies.refusal(400, "The specified schema is not a valid schema.") from None
    return summarize(ask.text)


def _packed(pack: Pack, ask: Ask, limit: int, tokenizer: Tokenizer, fault: str | None) -> tuple[str, str]:
    try:
        return packed(pack, ask.schema, limit, tokenizer, fault)
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError):
        raise bodies.refusal(400, "The specified schema is not a valid schema.") from None


def _misshaped(text: str, fault: str | None, ask: Ask) -> str:
    """JSON with that fault in it; who is shown such an answer mends what is wrong with it."""
    is_first = all(turn.get("role") != "model" for turn in ask.fields["contents"])
    if ask.config.get("responseMimeType") != "application/json":
        return text
    match fault:
        case "fenced_json":
            return f"```json\n{text}\n```"
        case "prose_json":
            return f"Here is the JSON you asked for:\n\n{text}\n\nIs there anything else?"
        case "broken_json" if is_first:
            return text[:-1]
        case "wrong_json" if is_first:
            return f"[{text}]" if text.startswith("{") else f'{{"answer":{text}}}'
        case _:
            return text


def _until_stop(text: str, sequences: tuple[str, ...]) -> str:
    ends = [end for sequence in sequences if sequence and (end := text.find(sequence)) >= 0]
    return text[: min(ends)] if ends else text


def _parts(text: str, thought: bool, ask: Ask) -> list[dict[str, Any]]:
    part = {"text": text, "thoughtSignature": _SIGNATURE} if thought else {"text": text}
    if thought and ask.thinking.get("includeThoughts"):
        return [{"text": _THOUGHT, "thought": True}, part]
    return [part]
