"""What names an answer: content, the params that are set, and the model that was asked; and nothing else."""

import hashlib
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from typing import Any

import pytest
from asking import ask
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.prompts import Function, Params, Prompt, Text, Tools, Turn, fingerprint, said

PARAMS = Params()
CHANGED: dict[str, Any] = {
    "system": "be kind",
    "max_output_tokens": 1,
    "temperature": 0.0,
    "top_p": 0.5,
    "top_k": 1,
    "seed": 0,
    "stop": ("END",),
    "thinking": "low",
    "response_mime_type": "application/json",
    "safety": (("HARM_CATEGORY_HARASSMENT", "BLOCK_NONE"),),
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "media_resolution": "low",
    "continuation": "bmV4dA==",
    "schema": '{"type":"object"}',
    "tools": Tools(google_search="{}", functions=(Function("f"),)),
    "packed": True,
}


def named(params: Params = PARAMS, text: str = "hi", model: str = "m") -> str:
    return fingerprint(said(text), params, model)


def test_every_parameter_has_a_changed_value_here() -> None:
    assert set(CHANGED) == {field.name for field in fields(Params)}


@pytest.mark.parametrize("name", CHANGED)
def test_each_parameter_changes_the_fingerprint(name: str) -> None:
    assert named(replace(PARAMS, **{name: CHANGED[name]})) != named()


def test_the_model_that_is_asked_changes_the_fingerprint_and_a_route_has_one_for_each() -> None:
    prompt = ask(text="hi")
    assert prompt.fingerprint("m") == named(model="m") != prompt.fingerprint("n") == named(model="n")


def test_a_level_and_a_budget_of_thinking_are_not_the_same() -> None:
    assert named(Params(thinking=1)) != named(Params(thinking="1"))


@pytest.mark.case("O8")
@pytest.mark.parametrize(
    ("model", "params", "digest"),
    [
        ("gemini-3.5-flash-lite", PARAMS, "9acbdd023e0b811681e57f283c295406"),
        (
            "m",
            Params("be kind", 1, 0.0, 0.5, 1, 0, ("END",), "low", "application/json", (("A", "B"),)),
            "29692e30f7d434bed8c5ecbf7ed4ab25",
        ),
    ],
)
@pytest.mark.parametrize("text", ["hi", "你好 \ud83d", "", "\xff"])
def test_a_fingerprint_is_what_it_was_in_november_2026(model: str, params: Params, digest: str, text: str) -> None:
    """Half-done documents and caches of that time hang on it."""
    whole = hashlib.blake2b(bytes.fromhex(digest) + text.encode("utf-8", "surrogatepass"), digest_size=16)
    assert named(params, text, model) == whole.hexdigest()


def test_a_pinned_fingerprint() -> None:
    assert (
        named(Params(max_output_tokens=800), "Summarize.", "gemini-3.5-flash-lite")
        == "e3a94aca661cb88d362ac0aa12809401"
    )


@dataclass(frozen=True, slots=True)
class Later(Params):
    """Params of a later version."""

    grammar: str | None = None
    words: tuple[str, ...] = ()


@pytest.mark.case("O8")
def test_a_new_field_changes_the_fingerprint_only_where_it_is_set() -> None:
    assert named(Later(**CHANGED)) == named(Params(**CHANGED))
    assert named(Later()) == named()
    assert len({named(Later()), named(Later(grammar="g")), named(Later(words=("t",)))}) == 3


TEXTS = st.text()
TURNS = st.lists(
    st.builds(Turn, st.sampled_from(("user", "model")), st.lists(st.builds(Text, TEXTS), max_size=3).map(tuple)),
    max_size=3,
).map(tuple)


@settings(deadline=None)
@given(TURNS, TURNS)
def test_content_that_differs_in_turns_parts_or_roles_has_another_fingerprint(
    one: tuple[Turn, ...], other: tuple[Turn, ...]
) -> None:
    assert (fingerprint(one, PARAMS, "m") == fingerprint(other, PARAMS, "m")) is (one == other)


def test_a_prompt_made_anew_forgets_the_fingerprints_of_the_one_it_was_made_of() -> None:
    first = ask(text="one")
    before = first.fingerprint("m")
    assert replace(first, content=said("other")).fingerprint("m") == named(text="other") != before
    assert replace(first, params=Params(seed=1)).fingerprint("m") != before
    assert ask(text="one", row=7, step="map").fingerprint("m") == before, "the row is no part of it"


def test_the_text_of_a_prompt_is_that_of_all_its_parts() -> None:
    turns = (Turn("user", (Text("a"), Text("b"))), Turn("model", (Text("c"),)))
    assert (ask(text="one").text, replace(ask(), content=turns).text, replace(ask(), content=()).text) == (
        "one",
        "a\nb\nc",
        "",
    )


def test_a_prompt_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        ask().row = 1  # type: ignore[misc]
    assert isinstance(ask(), Prompt)
