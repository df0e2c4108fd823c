"""A conversation that a cell holds, in Gemini's shape or in OpenAI's, as the turns of a prompt."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import orjson

from pipeline.prompts import Content, Text, Turn

_ROLES: Mapping[str, Literal["user", "model", "system"]] = {
    "user": "user",
    "model": "model",
    "assistant": "model",
    "system": "system",
    "developer": "system",
}
_SAYS_MORE = ("tool_calls", "function_call", "tool_call_id", "audio", "refusal")
"""Keys of a message that say more than its text: without them it would be another message."""
_NAME = re.compile(r"[A-Za-z_]{1,24}")


class NoConversationError(Exception):
    """The cell holds none that can be sent; the message says why, and quotes nothing of it."""


class Conversation(NamedTuple):
    """What was said, and the system instruction that stood before it."""

    system: str | None = None
    turns: Content = ()


def conversation(cell: object, ends_with: Literal["user", "model"]) -> Conversation:
    """The turns in a cell: a list of messages, or its JSON text; none for a cell that is empty.

    The two sides take turns, the user first, and the last word has whom `ends_with` names. Raises
    `NoConversationError`.
    """
    messages = _listed(cell)
    system = None
    if messages and _role(messages[0], 1) == "system":
        system, messages = _text(messages[0], 1), messages[1:]
    start = 1 if system is None else 2
    turns: list[Turn] = []
    for number, message in enumerate(messages, start):
        role = _role(message, number)
        if role == "system":
            raise NoConversationError(f"message {number} is a system message: only the first one may be")
        if role == (turns[-1].role if turns else "model"):
            whose = "the user's" if role == "user" else "the model's"
            wrong = f"is {whose} again: the two take turns" if turns else f"is {whose}: the user begins"
            raise NoConversationError(f"message {number} {wrong}")
        turns.append(Turn(role, (Text(_text(message, number)),)))
    if turns and turns[-1].role != ends_with:
        if ends_with == "user":
            raise NoConversationError("the last message is the model's: there is nothing to be answered")
        raise NoConversationError("the last message is the user's, and the template would be another of theirs")
    return Conversation(system, tuple(turns))


def texts(cell: object) -> list[str]:
    """The texts in a cell: a list of them, or its JSON text. Raises `NoConversationError`."""
    found = _listed(cell, "texts")
    for number, text in enumerate(found, 1):
        if not isinstance(text, str):
            raise NoConversationError(f"turn {number} is no text")
        if not text.strip():
            raise NoConversationError(f"turn {number} is empty")
    return list(found)


def _listed(cell: object, what: str = "messages") -> Sequence[Any]:
    if isinstance(cell, str):
        try:
            cell = orjson.loads(cell) if cell.strip() else None
        except orjson.JSONDecodeError:
            raise NoConversationError("it is no JSON") from None
    if cell is None:
        return []
    if not isinstance(cell, list):
        raise NoConversationError(f"it is no list of {what}")
    return cell


def _role(message: object, number: int) -> Literal["user", "model", "system"]:
    if not isinstance(message, Mapping):
        raise NoConversationError(f"message {number} is no object with a role and a text")
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        named = f"the role {role}" if isinstance(role, str) and _NAME.fullmatch(role) else "no role that is known"
        raise NoConversationError(f"message {number} has {named}: user, model, assistant and system are")
    return _ROLES[role]


def _text(message: Mapping[str, Any], number: int) -> str:
    """The text of a message; what it says beside that is not left out in silence."""
    for key in _SAYS_MORE:
        if message.get(key) not in (None, [], {}, ""):
            raise NoConversationError(f"message {number} has {key}: only text can be sent")
    parts, content = message.get("parts"), message.get("content")
    if parts is not None and content is not None:
        raise NoConversationError(f"message {number} has both parts and content")
    told = content if parts is None else parts
    if isinstance(told, str) and parts is None:
        text = told
    elif isinstance(told, list):
        text = "".join(_part(part, number) for part in told)
    else:
        raise NoConversationError(f"message {number} has no text: it stands in parts, or in content")
    if not text.strip():
        raise NoConversationError(f"message {number} is empty")
    return text


def _part(part: object, number: int) -> str:
    """The text of a part: `{text}` in either shape, OpenAI's with its type. A key that is null is not there."""
    there = {key: value for key, value in part.items() if value is not None} if isinstance(part, Mapping) else {}
    others = there.keys() - {"text", "type"}
    if not isinstance(there.get("text"), str) or others or there.get("type", "text") not in ("text", "input_text"):
        raise NoConversationError(f"message {number} has a part that is not text: only text can be sent")
    return str(there["text"])
