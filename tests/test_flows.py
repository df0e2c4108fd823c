import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import CHUNKED, make_job
from pipeline import flows
from pipeline.chunking import split
from pipeline.errors import BudgetReached, Halted, Parked
from pipeline.flows import Answer, build, group
from pipeline.job import Job
from pipeline.prompts import Params, Prompt
from pipeline.records import Document, Reply, Status, Step, Usage
from pipeline.templates import Template
from pipeline.tokens import estimate

LONG = " ".join(f"Sentence {number} is here." for number in range(60))


def told(prompt: Prompt) -> Reply:
    """An answer that says which call it is of."""
    return Reply(f"{prompt.step[0]}{prompt.level}.{prompt.chunk}", "ok", usage=Usage(prompt.input_tokens_est, 0, 3))


def failed(kind: str = "server") -> Reply:
    return Reply("", "error", error_kind=kind, error="it broke")  # type: ignore[arg-type]


@dataclass
class Service:
    """A `call` that keeps what it was asked; each answer comes after as many turns of the loop as `turns` says."""

    reply: Callable[[Prompt], Reply] = told
    turns: Callable[[Prompt], int] = lambda prompt: 0
    asked: list[Prompt] = field(default_factory=list)
    answered: list[Prompt] = field(default_factory=list)
    most_in_flight: int = 0

    async def __call__(self, prompt: Prompt) -> Reply:
        self.asked.append(prompt)
        self.most_in_flight = max(self.most_in_flight, len(self.asked) - len(self.answered))
        for _ in range(self.turns(prompt)):
            await checkpoint()
        self.answered.append(prompt)
        return self.reply(prompt)

    def of(self, step: Step) -> list[Prompt]:
        return sorted((p for p in self.asked if p.step == step), key=lambda p: (p.level, p.chunk))


def run(job: Job, document: Document, service: flows.Call) -> Answer:
    return anyio.run(flows.run, document, job, service)


def text(body: str, **columns: object) -> Document:
    return Document(7, "key", columns, body)


def chunked(directory: Path, **sections: Any) -> Job:
    return make_job(directory, CHUNKED, **sections)


# ---- one call


def test_a_row_is_one_call(tmp_path: Path) -> None:
    service = Service()
    answer = run(make_job(tmp_path), Document(7, "key", {"topic": "苹果"}), service)
    (prompt,) = service.asked
    assert (prompt.row, prompt.key, prompt.step, prompt.text) == (7, "key", "answer", "Say 苹果")
    assert (prompt.level, prompt.chunk, prompt.chunks) == (0, 0, 1)
    assert answer == Answer(told(prompt), (told(prompt),), 1, prompt.input_tokens_est)


def test_a_text_column_that_is_not_chunked_goes_in_whole(tmp_path: Path) -> None:
    service = Service()
    job = make_job(tmp_path, input={"text": "body"}, prompt={"template": "{{ title }}: {{ text }}"})
    run(job, text(LONG, title="T"), service)
    assert [prompt.text for prompt in service.asked] == [f"T: {LONG}"]


def test_the_estimate_counts_text_and_system(tmp_path: Path) -> None:
    service = Service()
    run(make_job(tmp_path, prompt={"system": "Be kind."}), Document(0, "0", {"topic": "apples"}), service)
    assert service.asked[0].input_tokens_est == estimate("Say apples") + estimate("Be kind.")


@pytest.mark.parametrize("status", ["blocked", "invalid", "error", "truncated"])
def test_what_the_one_call_came_to_is_what_the_row_came_to(tmp_path: Path, status: Status) -> None:
    reply = Reply("half", status, error_kind="server")
    answer = run(make_job(tmp_path), Document(0, "0", {"topic": "x"}), Service(lambda prompt: reply))
    assert answer.final == reply


@pytest.mark.parametrize("empty", ["", "  \n\t", "\u3000\u00a0"])
@pytest.mark.parametrize("chunk", [True, False])
def test_an_empty_text_is_not_sent(tmp_path: Path, empty: str, chunk: bool) -> None:
    job = chunked(tmp_path) if chunk else make_job(tmp_path, input={"text": "body"}, prompt={"template": "{{ text }}"})
    service = Service()
    answer = run(job, text(empty), service)
    assert service.asked == []
    assert (answer.final.status, answer.final.error_kind, answer.final.text) == ("invalid", "empty_input", "")
    assert answer.final.error == "the column body is empty"
    assert (answer.replies, answer.chunks, answer.input_tokens_est) == ((), 0, 0)


def test_a_row_without_a_text_column_is_sent_though_its_cells_are_empty(tmp_path: Path) -> None:
    service = Service()
    run(make_job(tmp_path), Document(0, "0", {"topic": None}), service)
    assert [prompt.text for prompt in service.asked] == ["Say "]


# ---- map, then reduce


def test_a_text_that_fits_one_piece_is_one_call_without_reduce(tmp_path: Path) -> None:
    service = Service()
    answer = run(chunked(tmp_path), text("Short text."), service)
    (prompt,) = service.asked
    assert (prompt.step, prompt.text, prompt.chunks) == ("answer", "1/1: Short text.", 1)
    assert (answer.final, answer.chunks, len(answer.replies)) == (told(prompt), 1, 1)


def test_every_piece_is_asked_about_and_one_reduce_merges_them(tmp_path: Path) -> None:
    service = Service()
    job = chunked(tmp_path, reduce={"template": "{{ title }}:\n{{ parts }}", "max_input_tokens": 1000})
    answer = run(job, text(LONG, title="T"), service)
    pieces = [LONG[piece.start : piece.end] for piece in split(LONG, 64)]
    maps, (merge,) = service.of("map"), service.of("reduce")
    assert service.asked == [*maps, merge]
    count = len(pieces)
    assert count > 3
    assert [prompt.text for prompt in maps] == [f"{n}/{count}: {piece}" for n, piece in enumerate(pieces, 1)]
    assert [(p.row, p.key, p.level, p.chunk, p.chunks) for p in maps] == [(7, "key", 0, n, count) for n in range(count)]
    assert merge.text == "T:\n" + "\n\n".join(f"m0.{n}" for n in range(count))
    assert (merge.row, merge.key, merge.level, merge.chunk, merge.chunks) == (7, "key", 1, 0, 1)
    assert answer.final.text == "r1.0"
    assert answer.chunks == count
    assert [reply.text for reply in answer.replies] == [*(f"m0.{n}" for n in range(count)), "r1.0"]
    assert answer.input_tokens_est == sum(prompt.input_tokens_est for prompt in service.asked)


def test_pieces_are_asked_about_at_the_same_time_and_merged_after_all_of_them(tmp_path: Path) -> None:
    service = Service(turns=lambda prompt: 2)
    run(chunked(tmp_path), text(LONG), service)
    maps = len(service.of("map"))
    assert service.most_in_flight == maps
    assert all(prompt.step == "map" for prompt in service.answered[:maps])
    assert all(prompt.step == "reduce" for prompt in service.asked[maps:])


def test_map_and_reduce_have_their_own_parameters(tmp_path: Path) -> None:
    service = Service()
    job = chunked(
        tmp_path,
        prompt={"system": "map"},
        model={"max_output_tokens": 10},
        reduce={"system": "merge", "max_output_tokens": 20, "max_input_tokens": 1000},
    )
    run(job, text(LONG), service)
    assert {(p.params.system, p.params.max_output_tokens) for p in service.of("map")} == {("map", 10)}
    assert {(p.params.system, p.params.max_output_tokens) for p in service.of("reduce")} == {("merge", 20)}


@pytest.mark.parametrize("order", ["as asked", "reversed", "mixed"])
def test_parts_keep_their_order_whatever_comes_first(tmp_path: Path, order: str) -> None:
    orders: dict[str, Callable[[int], int]] = {
        "as asked": lambda n: n,
        "reversed": lambda n: 50 - n,
        "mixed": lambda n: n * 7 % 11,
    }
    turns = orders[order]
    service = Service(turns=lambda prompt: turns(prompt.chunk))
    run(chunked(tmp_path, reduce={"max_input_tokens": 1000}), text(LONG), service)
    chunks = [prompt.chunk for prompt in service.answered if prompt.step == "map"]
    assert (chunks == sorted(chunks)) is (order == "as asked")
    (merge,) = service.of("reduce")
    assert merge.text == "Merge:\n" + "\n\n".join(f"m0.{n}" for n in range(len(chunks)))


def test_pieces_overlap_as_asked(tmp_path: Path) -> None:
    service = Service()
    job = chunked(tmp_path, chunk={"overlap_tokens": 20}, prompt={"template": "{{ text }}"})
    run(job, text(LONG), service)
    texts = [prompt.text for prompt in service.of("map")]
    assert LONG.startswith(texts[0]) and LONG.endswith(texts[-1])
    for before, after in pairwise(texts):
        shared = max(n for n in range(len(after)) if before.endswith(after[:n]))
        assert 0 < estimate(after[:shared]) <= 20


def test_parts_that_do_not_fit_are_merged_in_levels(tmp_path: Path) -> None:
    part = "word " * 60
    service = Service(lambda prompt: replace(told(prompt), text=part + told(prompt).text))
    answer = run(chunked(tmp_path, reduce={"max_input_tokens": 150}), text(LONG * 3), service)
    level_of = {level: [p for p in service.of("reduce") if p.level == level] for level in range(1, 9)}
    levels = [level for level in level_of if level_of[level]]
    assert len(levels) >= 3
    assert levels == list(range(1, len(levels) + 1))
    assert [len(level_of[level]) for level in levels] == sorted(
        (len(level_of[level]) for level in levels), reverse=True
    )
    left = [f"m0.{n}" for n in range(len(service.of("map")))]
    for level in levels:
        prompts = level_of[level]
        assert [p.chunk for p in prompts] == list(range(len(prompts)))
        merged = [name for p in prompts for name in p.text.split() if name[0] in "mr"]
        assert left[: len(merged)] == merged
        left = [f"r{level}.{p.chunk}" for p in prompts] + left[len(merged) :]
        assert {p.chunks for p in prompts} == {len(left)}
    assert len(left) == 1
    assert answer.final.text == part + left[0]
    assert len(answer.replies) == len(service.asked)
    assert answer.input_tokens_est == sum(prompt.input_tokens_est for prompt in service.asked)


@pytest.mark.parametrize(("words", "merges"), [(2000, 1), (2500, 2)])
def test_there_is_room_for_16000_tokens_of_parts_unless_told_otherwise(tmp_path: Path, words: int, merges: int) -> None:
    service = Service(lambda prompt: replace(told(prompt), text="word " * words))
    run(chunked(tmp_path), text(LONG), service)
    assert len(service.of("map")) == 7
    assert sum(prompt.level == 1 for prompt in service.of("reduce")) == merges


def test_a_part_that_is_left_alone_goes_up_a_level_unchanged(tmp_path: Path) -> None:
    part = "word " * 100
    service = Service(lambda prompt: replace(told(prompt), text=part + told(prompt).text))
    body = next(LONG[:n] for n in range(len(LONG)) if len(split(LONG[:n], 64)) == 3)
    run(chunked(tmp_path, reduce={"max_input_tokens": 128}), text(body), service)
    first, second = service.of("reduce")
    assert first.text.count("m0.") == 2
    assert (first.chunk, first.chunks, second.level) == (0, 2, 2)
    assert second.text.index("r1.0") < second.text.index("m0.2")


# ---- what goes wrong


def test_a_piece_that_fails_ends_the_document_with_its_failure(tmp_path: Path) -> None:
    broken = Reply("left over", "blocked", error_kind="answer_blocked", error="withheld", usage=Usage(5, 0, 1))
    service = Service(lambda prompt: broken if prompt.chunk == 2 else told(prompt))
    answer = run(chunked(tmp_path), text(LONG), service)
    assert service.of("reduce") == []
    assert answer.final == replace(broken, text="")
    assert broken in answer.replies
    assert answer.chunks == len(split(LONG, 64))


def test_a_failure_withdraws_the_calls_that_were_not_answered(tmp_path: Path) -> None:
    service = Service(
        lambda prompt: failed() if prompt.chunk == 1 else told(prompt), lambda prompt: 5 if prompt.chunk > 1 else 0
    )
    answer = run(chunked(tmp_path), text(LONG), service)
    assert {prompt.chunk for prompt in service.answered} == {0, 1}
    assert [reply.text for reply in answer.replies] == ["m0.0", ""]
    assert answer.final.error_kind == "server"


def test_an_answer_that_was_bought_already_is_kept_though_another_piece_failed(tmp_path: Path) -> None:
    async def call(prompt: Prompt) -> Reply:
        if prompt.chunk == 0:
            await checkpoint()
            return failed()
        if prompt.chunk == 2:
            with anyio.CancelScope(shield=True):  # as a call that was sent does
                for _ in range(5):
                    await checkpoint()
                return told(prompt)
        await anyio.sleep_forever()
        raise AssertionError

    answer = run(chunked(tmp_path), text(LONG), call)
    assert answer.replies == (failed(), Reply("m0.2", "ok", usage=answer.replies[1].usage))
    assert answer.final == failed()


def test_of_several_failures_the_first_in_the_text_is_told(tmp_path: Path) -> None:
    kinds = {1: "timeout", 3: "server"}

    async def call(prompt: Prompt) -> Reply:
        with anyio.CancelScope(shield=True):
            for _ in range(10 - prompt.chunk):
                await checkpoint()
        return failed(kinds[prompt.chunk]) if prompt.chunk in kinds else told(prompt)

    assert run(chunked(tmp_path), text(LONG), call).final.error_kind == "timeout"


def test_a_reduce_that_fails_ends_the_document(tmp_path: Path) -> None:
    service = Service(lambda prompt: failed() if prompt.step == "reduce" else told(prompt))
    answer = run(chunked(tmp_path, reduce={"max_input_tokens": 1000}), text(LONG), service)
    assert answer.final == failed()
    assert len(answer.replies) == len(service.asked)


def test_a_truncated_part_marks_the_document_truncated(tmp_path: Path) -> None:
    cut = Reply("half", "truncated", "MAX_TOKENS", "truncated")
    service = Service(lambda prompt: cut if prompt.step == "map" and prompt.chunk in (0, 2) else told(prompt))
    answer = run(chunked(tmp_path, reduce={"max_input_tokens": 1000}), text(LONG), service)
    assert "half" in service.of("reduce")[0].text
    assert (answer.final.status, answer.final.error_kind, answer.final.text) == ("truncated", "truncated", "r1.0")
    assert answer.final.error == f"2 of {len(service.asked)} part answers reached max_output_tokens"


def test_a_truncated_part_without_text_is_a_failure(tmp_path: Path) -> None:
    cut = Reply("", "truncated", "MAX_TOKENS", "truncated", "nothing but thoughts")
    service = Service(lambda prompt: cut if prompt.chunk == 1 else told(prompt))
    answer = run(chunked(tmp_path), text(LONG), service)
    assert answer.final == cut
    assert service.of("reduce") == []


# ---- when no call is admitted any more


@pytest.mark.parametrize("chunk", [0, 3])
def test_halted_comes_out_as_it_is(tmp_path: Path, chunk: int) -> None:
    halt = Halted(BudgetReached("enough"))

    def reply(prompt: Prompt) -> Reply:
        if prompt.chunk == chunk:
            raise halt
        return told(prompt)

    with pytest.raises(Halted) as caught:
        run(chunked(tmp_path), text(LONG), Service(reply))
    assert caught.value is halt


def test_halted_withdraws_the_other_pieces(tmp_path: Path) -> None:
    async def call(prompt: Prompt) -> Reply:
        if prompt.chunk != 2:
            await anyio.sleep_forever()
        raise Halted

    with pytest.raises(Halted):
        run(chunked(tmp_path), text(LONG), call)


def test_halted_of_every_piece_is_one_halted(tmp_path: Path) -> None:
    def reply(prompt: Prompt) -> Reply:
        raise Halted

    with pytest.raises(Halted):
        run(chunked(tmp_path), text(LONG), Service(reply, lambda prompt: 1))


def test_parked_pieces_keep_none_of_the_others_from_being_asked(tmp_path: Path) -> None:
    asked: list[int] = []

    async def call(prompt: Prompt) -> Reply:
        asked.append(prompt.chunk)
        if prompt.chunk != 1:
            raise Parked
        await checkpoint()
        return told(prompt)

    with pytest.raises(Parked):
        run(chunked(tmp_path), text(LONG), call)
    assert sorted(asked) == list(range(len(asked))) and len(asked) > 2


@pytest.mark.parametrize(("other", "told_of"), [(Halted(), Halted), (None, None)])
def test_a_piece_that_is_halted_or_fails_outweighs_one_that_is_parked(
    tmp_path: Path, other: Halted | None, told_of: type[Exception] | None
) -> None:
    def reply(prompt: Prompt) -> Reply:
        if prompt.chunk == 0:
            raise Parked
        if other:
            raise other
        return Reply("", "blocked", error_kind="prompt_blocked", raw=b"{}")

    if told_of:
        with pytest.raises(told_of):
            run(chunked(tmp_path), text(LONG), Service(reply))
    else:
        assert run(chunked(tmp_path), text(LONG), Service(reply)).final.status == "blocked"


def test_halted_in_a_reduce_and_in_a_single_call(tmp_path: Path) -> None:
    def reply(prompt: Prompt) -> Reply:
        if prompt.step == "map":
            return told(prompt)
        raise Halted

    with pytest.raises(Halted):
        run(chunked(tmp_path), text(LONG), Service(reply))
    with pytest.raises(Halted):
        run(chunked(tmp_path), text("short"), Service(reply))


def test_a_document_that_failed_is_done_though_it_was_halted_too(tmp_path: Path) -> None:
    async def call(prompt: Prompt) -> Reply:
        if prompt.chunk == 0:
            raise Halted
        with anyio.CancelScope(shield=True):
            await checkpoint()
        return failed() if prompt.chunk == 1 else told(prompt)

    assert run(chunked(tmp_path), text(LONG), call).final == failed()


# ---- the fingerprint of a prompt


def prompt_of(params: Params, row: int = 0, key: str = "0", **values: object) -> Prompt:
    return build(Document(row, key, {}), "answer", Template("{{ x }}", "here"), params, dict(values))


def test_equal_content_has_an_equal_fingerprint_in_every_row_and_step() -> None:
    params = Params(system="s")
    one = prompt_of(params, x="same")
    other = build(
        Document(9, "nine", {}), "map", Template("sa{{ y }}", "there"), replace(params), {"y": "me"}, chunk=3, chunks=4
    )
    assert one.fingerprint("m") == other.fingerprint("m")
    assert (other.row, other.key, other.step, other.chunk, other.chunks) == (9, "nine", "map", 3, 4)


@pytest.mark.parametrize(
    "changed",
    [
        {"system": "t"},
        {"system": None},
        {"max_output_tokens": 5},
        {"temperature": 0.0},
        {"top_p": 0.1},
        {"top_k": 1},
        {"seed": 1},
        {"stop": ("x",)},
        {"thinking": "low"},
        {"response_mime_type": "application/json"},
        {"safety": (("a", "b"),)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_each_parameter_changes_the_fingerprint(changed: dict[str, Any]) -> None:
    params = Params(system="s")
    one, other = prompt_of(params, x="same"), prompt_of(replace(params, **changed), x="same")
    assert one.fingerprint("m") != other.fingerprint("m")


@settings(deadline=None)
@given(*[st.text().filter(str.strip)] * 2)
def test_the_text_and_only_the_text_changes_the_fingerprint(one: str, other: str) -> None:
    params = Params()
    first, second = prompt_of(params, x=one), prompt_of(params, x=other)
    assert (first.fingerprint("m") == second.fingerprint("m")) is (first.text == second.text)


def test_a_resumed_document_asks_the_same_again(tmp_path: Path) -> None:
    first, second = Service(), Service(turns=lambda prompt: 20 - prompt.chunk)
    for service in (first, second):
        run(chunked(tmp_path), text(LONG), service)
    assert [p.fingerprint("m") for step in ("map", "reduce") for p in first.of(step)] == [
        p.fingerprint("m") for step in ("map", "reduce") for p in second.of(step)
    ]
    assert len({prompt.fingerprint("m") for prompt in first.asked}) == len(first.asked)


# ---- grouping

PARTS = st.lists(st.integers(0, 120).map(lambda words: "word " * words), min_size=2, max_size=60)
BUDGETS = st.integers(128, 600)


@settings(deadline=None)
@given(PARTS, BUDGETS)
def test_grouping_keeps_every_part_in_its_place(parts: list[str], budget: int) -> None:
    assert [part for members in group(parts, budget) for part in members] == parts


@settings(deadline=None)
@given(PARTS, BUDGETS)
def test_every_level_shrinks(parts: list[str], budget: int) -> None:
    groups = group(parts, budget)
    assert len(groups) <= math.ceil(len(parts) / 2)
    assert all(len(members) >= 2 for members in groups[:-1])


@settings(deadline=None)
@given(PARTS, BUDGETS)
def test_only_a_last_part_between_full_pairs_stands_alone(parts: list[str], budget: int) -> None:
    groups = group(parts, budget)
    if len(groups[-1]) == 1:
        assert len(groups[-2]) == 2


@settings(deadline=None)
@given(PARTS, st.integers(256, 600))
def test_groups_fit_when_no_part_is_above_half_of_the_room(parts: list[str], budget: int) -> None:
    assert max(estimate(part) for part in parts) + 2 <= budget / 2
    for members in group(parts, budget):
        assert sum(estimate(part) + 2 for part in members) <= budget
        assert estimate("\n\n".join(members)) <= budget


def test_parts_above_the_room_are_merged_in_pairs() -> None:
    assert [len(members) for members in group(["word " * 1000] * 6, 128)] == [2, 2, 2]


def test_one_group_where_everything_fits() -> None:
    assert group(["a", "b", "c"], 128) == [["a", "b", "c"]]


# ---- templates that fail on the values of a row


def test_a_template_that_fails_on_a_row_is_that_rows_outcome(tmp_path: Path) -> None:
    job = make_job(tmp_path, prompt={"template": "Say {{ topic + 1 }}"})
    service = Service()
    answer = run(job, Document(7, "key", {"topic": "secret words"}), service)
    assert (answer.final.status, answer.final.error_kind, answer.chunks) == ("invalid", "template_error", 0)
    assert answer.final.error and "the template fails" in answer.final.error and "secret" not in answer.final.error
    assert not service.asked
    assert run(job, Document(8, "key", {"topic": 1}), service).final.status == "ok"


@pytest.mark.case("D17")
def test_a_prompt_beyond_any_context_is_refused_uncounted_and_in_pieces_it_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flows.base, "MOST_CHARACTERS", 400)
    job, service = make_job(tmp_path, prompt={"template": "{{ topic[:390] }}{{ end }}"}), Service()
    fits, beyond = ({"topic": "a" * 10_000, "end": "b" * more} for more in (10, 11))
    assert run(job, Document(0, "0", fits), service).final.status == "ok", "what the template leaves out is not counted"
    answer = run(job, Document(1, "1", beyond), service)
    assert (answer.final.status, answer.final.error_kind) == ("invalid", "too_long")
    assert answer.final.error and "has 401 characters" in answer.final.error and len(service.asked) == 1
    assert run(chunked(tmp_path), text(LONG), Service()).final.status == "ok" and len(LONG) > 400


@pytest.mark.case("D17")
@pytest.mark.parametrize(
    ("template", "refused"),
    [
        ("{{ topic }}{{ end }}", True),
        ("{{ (topic) }}", True),
        ("{% set topic = topic[:9] %}{{ topic }}", False),
        ("{% if end %}{% set topic = 'x' %}{% endif %}{{ topic }}", False),
        ("{% if not end %}{{ topic }}{% endif %}x", False),
        ("{{ topic|length }}", False),
    ],
)
def test_a_text_beyond_any_context_is_not_rendered_where_it_would_be_inserted_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str, refused: bool
) -> None:
    monkeypatch.setattr(flows.base, "MOST_CHARACTERS", 400)
    job, rendered = make_job(tmp_path, prompt={"template": template}), Service()
    least = job.template.least_characters({"topic": "a" * 500, "end": "b"}, {})
    assert (least >= 500) == refused
    answer = run(job, Document(0, "0", {"topic": "a" * 500, "end": "b"}), rendered)
    assert (answer.final.error_kind == "too_long") == refused and (not rendered.asked) == refused


@pytest.mark.case("D17")
def test_a_prompt_is_measured_in_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.base, "MOST_BYTES", 300)
    monkeypatch.setattr(flows.base, "_SLICE", 7)
    job = make_job(tmp_path, prompt={"template": "{{ topic }}"})
    for topic, fits in (
        ("字" * 100, True),
        ("字" * 101, False),
        ("é" * 150, True),
        ("é" * 151, False),
        ("a" * 301, True),
    ):
        answer = run(job, Document(0, "0", {"topic": topic}), Service())
        assert (answer.final.error_kind is None) == fits


def test_a_merge_that_cannot_be_rendered_still_shows_what_the_parts_cost(tmp_path: Path) -> None:
    job = chunked(tmp_path, reduce={"template": "{{ parts[0]|int }}"})
    service = Service()
    answer = run(job, text(LONG, topic="words"), service)
    assert (answer.final.error_kind, answer.chunks) == ("template_error", len(service.of("map")))
    assert len(answer.replies) == len(service.asked) == answer.chunks > 1
    assert answer.input_tokens_est == sum(prompt.input_tokens_est for prompt in service.asked)


# ---- what no answer can make right is not paid for


@pytest.mark.case("P1")
@pytest.mark.parametrize(
    "broken", ["{{ parts.foo }}", "{{ parts }}{{ n|round }}", "{{ parts + 1 }}", "{{ parts[0].x.y }}"]
)
def test_a_merging_that_fails_whatever_is_answered_fails_before_its_pieces_are_bought(
    tmp_path: Path, broken: str
) -> None:
    service = Service()
    answer = run(chunked(tmp_path, reduce={"template": f"{broken} {{{{ parts }}}}"}), text(LONG, n=None), service)
    assert service.asked == []
    assert (answer.final.status, answer.final.error_kind) == ("invalid", "template_error")
    assert "[reduce] template, line 1" in (answer.final.error or "")


@pytest.mark.case("P1")
@pytest.mark.parametrize(
    "template",
    [
        "{{ parts|first|int }}",
        "{{ parts[1].split(': ')[1] }}",
        "{% for part in parts %}{{ part.split('SCORE=')[2]|float }}{% endfor %}",
        "{{ parts[11] }}",
    ],
)
def test_a_merging_that_some_answers_make_right_is_tried_on_the_true_ones(tmp_path: Path, template: str) -> None:
    service = Service(lambda prompt: Reply("SCORE=2SCORE=3", "ok") if "float" in template else told(prompt))
    run(chunked(tmp_path, reduce={"template": template}), text(LONG), service)
    assert len(service.of("map")) > 2


@pytest.mark.case("P1")
@pytest.mark.parametrize("blank", ["", " \n", None])
def test_a_prompt_of_which_nothing_is_left_is_not_sent(tmp_path: Path, blank: str | None) -> None:
    service = Service()
    answer = run(make_job(tmp_path, prompt={"template": "{{ topic }}\n"}), Document(0, "0", {"topic": blank}), service)
    assert service.asked == []
    assert (answer.final.status, answer.final.error_kind) == ("invalid", "empty_input")
    assert (answer.final.error or "").startswith("the template makes an empty prompt; ")
