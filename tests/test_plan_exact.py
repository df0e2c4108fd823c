from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial

import anyio
import httpx
import pytest
import stores
import vclock
from asking import TARGET
from corpus import make_corpus
from hypothesis import given
from hypothesis import strategies as st
from plans import kind_of

from pipeline.emulator import Emulator, EmulatorOptions
from pipeline.emulator.counting import Tokenizer
from pipeline.emulator.counting import count as count_text
from pipeline.errors import AuthError, PipelineError, ServiceError
from pipeline.plan.exact import SAMPLE, Picked, count_some, pick
from pipeline.plan.learned import Learned
from pipeline.prompts import Prompt, said
from pipeline.providers.base import Account
from pipeline.providers.gemini import Gemini
from pipeline.providers.transport import Wire
from pipeline.records import Failure, FailureKind
from pipeline.tokens import estimate


def prompt(row: int, tokens: int = 100, text: str = "words") -> Prompt:
    return replace(stores.prompt(row), input_tokens_est=tokens, content=said(text))


def picked(row: int, kind: int = 0, tokens: int = 100, text: str = "words") -> Picked:
    return Picked(prompt(row, tokens, text), kind, tokens)


@cache
def table() -> tuple[Picked, ...]:
    texts = enumerate(text for _, text in make_corpus())
    return tuple(picked(row, kind_of(text), estimate(text), text) for row, text in texts)


class Service:
    """Counts in a quarter of a second and remembers when it was asked."""

    def __init__(self, tokenizer: Tokenizer = "subword", refuses: FailureKind | None = None, after: int = 0) -> None:
        self.tokenizer = tokenizer
        self.refuses = refuses
        self.after = after  # prompts that are counted before it refuses
        self.asked_at: list[float] = []
        self.rows: list[int] = []
        self.open = self.most_open = 0

    async def count(self, prompt: Prompt) -> int | Failure:
        self.asked_at.append(anyio.current_time())
        self.rows.append(prompt.row)
        number = len(self.rows)
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        await anyio.sleep(0.25 if self.tokenizer == "subword" else 2.0)
        self.open -= 1
        if self.refuses and number > self.after:
            return Failure(self.refuses, "invalid_request", "HTTP 404: no such method", 404)
        return count_text(prompt.text, self.tokenizer)


def counted(given: Sequence[Picked], service: Service) -> Learned:
    known: Learned = vclock.run(count_some, given, service.count)
    return known


# ---- which prompts


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 2)), max_size=60), st.integers(0, 40))
def test_what_is_picked_stands_for_all(rows: list[tuple[int, int]], most: int) -> None:
    given = [picked(row, kind, tokens) for row, (tokens, kind) in enumerate(rows)]
    chosen = pick(given, most)
    assert len(chosen) == len({one.prompt.row for one in chosen}) <= most
    totals: Counter[int] = Counter()
    for one in given:
        totals[one.kind] += one.prompt.input_tokens_est
    stood_for: Counter[int] = Counter()
    for one in chosen:
        assert one.prompt.input_tokens_est > 0
        stood_for[one.kind] += one.tokens  # type: ignore[assignment]
    kinds = {kind for kind, tokens in totals.items() if tokens}
    if most >= len(kinds):
        assert set(stood_for) == kinds
    for kind, tokens in stood_for.items():
        assert tokens == pytest.approx(totals[kind])


def test_a_small_table_is_counted_whole() -> None:
    given = [picked(row, row % 3) for row in range(50)]
    assert sorted(one.prompt.row for one in pick(given, 50)) == list(range(50))


def test_kinds_are_counted_alike_however_rare() -> None:
    given = [picked(row, 0 if row < 900 else 1 if row < 990 else 2) for row in range(1000)]
    assert Counter(one.kind for one in pick(given, 200)) == {0: 100, 1: 90, 2: 10}


# ---- counting


@pytest.mark.parametrize("tokenizer", ["coarse", "fine", "subword"])
@pytest.mark.parametrize("most", [60, SAMPLE])
def test_the_sum_over_a_mixed_table_is_right_to_1_percent(tokenizer: Tokenizer, most: int) -> None:
    known = counted(pick(table(), most), Service(tokenizer))
    corrected = sum(one.tokens * known.ratio("answer", one.kind).value for one in table())
    assert corrected == pytest.approx(sum(count_text(one.prompt.text, tokenizer) for one in table()), rel=0.01)


def test_requests_are_paced_and_few_at_once() -> None:
    service = Service("coarse")
    counted([picked(row) for row in range(60)], service)
    assert service.most_open == 8
    quick = Service()
    counted([picked(row) for row in range(60)], quick)
    assert all(later - at >= 1 - 1e-6 for at, later in zip(quick.asked_at, quick.asked_at[21:], strict=False))
    assert quick.asked_at[-1] < 4


def test_what_cannot_be_counted_is_left_out() -> None:
    service = Service(refuses="transient", after=5)
    known = counted([picked(row, 0, 2, "two words") for row in range(30)], service)
    assert len(service.rows) == 30
    assert known.based_on == "5 counted prompts"
    assert known.ratio("answer", 0).value == 1.0


@pytest.mark.parametrize(
    ("kind", "error"), [("auth", AuthError), ("reject", ServiceError), ("transient", ServiceError)]
)
def test_a_service_that_counts_nothing_is_not_asked_for_long(kind: FailureKind, error: type[PipelineError]) -> None:
    service = Service(refuses=kind)
    with pytest.raises(error, match="HTTP 404: no such method") as caught:
        counted([picked(row) for row in range(200)], service)
    assert ("the key" if kind == "auth" else "--pilot 20") in caught.value.hint
    assert len(service.rows) < 30


def test_nothing_to_count() -> None:
    service = Service()
    assert counted([], service).based_on == ""
    assert counted([picked(0, 0, 0, "")], service).based_on == ""
    assert service.rows == []


def test_it_counts_as_the_service_does() -> None:
    async def count() -> Learned:
        options = EmulatorOptions(tokenizer="subword", any_model=True)
        async with Wire(httpx.ASGITransport(Emulator(options))) as wire:
            gemini = Gemini({TARGET.access: Account(wire, "key")})
            count = partial(gemini.count_tokens, target=TARGET)
            return await count_some([picked(1, 0, 10, "twelve, thirteen")], count)

    known: Learned = anyio.run(count)
    assert known.taught["input"].to_list() == [4]  # one token starts every request
