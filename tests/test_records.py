from dataclasses import FrozenInstanceError, dataclass, fields, replace
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.records import PASSING, STATUSES, Document, ErrorKind, Params, Reply, Status, Usage

COUNTS = st.integers(0, 10**9)
USAGES = st.builds(Usage, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, st.booleans())

PARAMS = Params(model="gemini-3.5-flash-lite")
CHANGED: dict[str, Any] = {
    "model": "gemini-3.8-flash",
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
}


@settings(deadline=None)
@given(USAGES, USAGES, USAGES)
def test_usages_add_up_in_any_order(a: Usage, b: Usage, c: Usage) -> None:
    assert a + b == b + a
    assert (a + b) + c == a + (b + c)
    assert a + Usage() == a


def test_a_sum_with_an_estimated_part_is_estimated() -> None:
    assert Usage(1, 2, 3, 4, 5) + Usage(10, 20, 30, 40, 50, estimated=True) == Usage(11, 22, 33, 44, 55, estimated=True)


def test_every_parameter_has_a_changed_value_here() -> None:
    assert set(CHANGED) == {field.name for field in fields(Params)}


@pytest.mark.parametrize("name", CHANGED)
def test_each_parameter_changes_the_digest(name: str) -> None:
    assert replace(PARAMS, **{name: CHANGED[name]}).digest != PARAMS.digest


def test_equal_parameters_have_equal_digests_also_when_one_was_read_before() -> None:
    one, other = Params(**CHANGED), Params(**CHANGED)
    before = one.digest
    assert before == other.digest == replace(one).digest
    assert len(before) == 16


def test_a_level_and_a_budget_of_thinking_are_not_the_same() -> None:
    assert replace(PARAMS, thinking=1).digest != replace(PARAMS, thinking="1").digest


@pytest.mark.case("O8")
@pytest.mark.parametrize(
    ("params", "digest"),
    [
        (PARAMS, "9acbdd023e0b811681e57f283c295406"),
        (
            Params("m", "be kind", 1, 0.0, 0.5, 1, 0, ("END",), "low", "application/json", (("A", "B"),)),
            "29692e30f7d434bed8c5ecbf7ed4ab25",
        ),
    ],
)
def test_a_digest_is_what_it_was_in_november_2026(params: Params, digest: str) -> None:
    """Half-done documents and caches of that time hang on it."""
    assert params.digest.hex() == digest


@dataclass(frozen=True)
class Later(Params):
    """Parameters of a later version."""

    grammar: str | None = None
    tools: tuple[str, ...] = ()


@pytest.mark.case("O8")
def test_a_new_field_changes_the_digest_only_where_it_is_set() -> None:
    assert Later(**CHANGED).digest == Params(**CHANGED).digest
    assert Later("m").digest == Params("m").digest
    digests = {Later("m").digest, Later("m", grammar="g").digest, Later("m", tools=("t",)).digest}
    assert len(digests) == 3


def test_status_and_error_names_are_all_listed() -> None:
    assert get_args(Status) == STATUSES
    assert set(get_args(ErrorKind)) > PASSING


def test_an_answer_that_was_paid_for_is_never_among_the_failures_that_pass() -> None:
    assert not PASSING & {"truncated", "prompt_blocked", "answer_blocked", "recitation", "empty_answer"}


@pytest.mark.parametrize(
    "record", [Document(0, "a", {}), PARAMS, Usage(), Reply("", "ok")], ids=lambda r: type(r).__name__
)
def test_records_do_not_change(record: object) -> None:
    name = fields(record)[0].name  # type: ignore[arg-type]
    with pytest.raises(FrozenInstanceError):
        setattr(record, name, None)
