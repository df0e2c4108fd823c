"""What is believed of the results of a batch: the key, and that only as far as it can be checked."""

from pathlib import Path
from random import Random

from asking import MODEL
from hypothesis import given
from hypothesis import strategies as st
from stores import paid, prompt

from pipeline.batch.cutting import LEAST_LINES, PARTS, Size, full_at
from pipeline.batch.taking import BY_LOT, MOST_COUNTED, Found, found_in, is_other, lines_of, to_count
from pipeline.batch.tries import Tries
from pipeline.providers.batches.base import Bounds, Line
from pipeline.records import Failure, Reply, Usage
from pipeline.store.batch_lines import Key

PASSING = Failure("transient", "server", "in a batch: INTERNAL")


def key(row: int, tokens: int = 10) -> Key:
    return Key.of(prompt(row, f"k{row}", input_tokens_est=tokens), MODEL)


def answer(text: str, tokens: int = 12) -> Reply:
    return paid(text, usage=Usage(tokens, 0, 3))


def found(lines: list[Line], rows: int = 3) -> Found:
    keys = {each.fingerprint: each for each in map(key, range(rows))}
    by_line = {b"%d" % number: line for number, line in enumerate(lines)}
    return found_in(by_line, keys, lambda line, model, tokens: by_line[line], MODEL)


def names(keys: list[Key]) -> list[str]:
    return [each.fingerprint for each in keys]


def test_lines_are_joined_by_their_keys_whatever_their_order() -> None:
    told = found([Line("k2", answer("c")), Line("k0", answer("a")), Line("k1", None, PASSING)])
    assert {name: reply.text for name, reply in told.replies.items()} == {"k2": "c", "k0": "a"}
    assert told.failures == {"k1": PASSING} and told.unbelieved == 0


def test_a_key_without_a_line_or_with_an_empty_one_is_missing() -> None:
    told = found([Line("k2", answer("c")), Line("k1")])
    assert names(told.missing([key(0), key(1), key(2)])) == ["k0", "k1"]


def test_equal_answers_to_one_key_are_one_and_different_ones_are_none() -> None:
    told = found([Line("k0", answer("a")), Line("k0", answer("a")), Line("k1", answer("b")), Line("k1", answer("B"))])
    assert list(told.replies) == ["k0"] and told.contradicted == {"k1"}
    assert [reply.text for _, reply in told.refused] == ["b", "B"], "both may have been paid for"
    assert not told.missing([key(0), key(1)])


def test_an_answer_stands_before_a_failure_of_the_same_key() -> None:
    for lines in (
        [Line("k0", answer("a")), Line("k0", None, PASSING)],
        [Line("k0", None, PASSING), Line("k0", answer("a"))],
    ):
        told = found(lines)
        assert list(told.replies) == ["k0"] and not told.failures


def test_a_key_that_nobody_gave_is_a_stranger_and_is_paid_for() -> None:
    told = found([Line("other", answer("x")), Line(None, None, PASSING)])
    assert told.strangers == 2 and [(of, reply.text) for of, reply in told.refused] == [(None, "x")]


def test_some_lines_that_are_not_believed_spoil_a_batch() -> None:
    told = Found(strangers=2)
    assert not told.is_refused(10) and not told.is_refused(10_000)
    told.strangers = 3
    assert told.is_refused(10) and told.is_refused(599) and not told.is_refused(600)


@given(st.permutations(range(8)), st.lists(st.integers(0, 7), max_size=4))
def test_no_order_and_no_repetition_changes_what_is_believed(order: list[int], twice: list[int]) -> None:
    lines = [Line(f"k{row}", answer(f"answer {row}")) for row in (*order, *twice)]
    told = found(lines, 8)
    assert {name: reply.text for name, reply in told.replies.items()} == {
        f"k{row}": f"answer {row}" for row in range(8)
    }
    assert not told.unbelieved and not told.refused


# ---- swapped answers


def test_a_swap_of_prompts_that_differ_by_thirty_in_a_hundred_is_counted_whatever_else_is_off() -> None:
    rng = Random(5)
    keys = {f"k{row}": key(row, rng.randint(100, 3000)) for row in range(2000)}
    real = {name: round(each.input_tokens_est * 1.4 * rng.gauss(1, 0.04)) for name, each in keys.items()}
    names = sorted(keys)
    for first, second in zip(names[::40], names[7::40], strict=False):
        if 1 / 1.3 < real[first] / real[second] < 1.3:
            continue
        told = dict(real)
        told[first], told[second] = told[second], told[first]
        replies = {name: answer("x", tokens) for name, tokens in told.items()}
        counted = {each.fingerprint for each in to_count(keys, replies, rng)}
        assert {first, second} & counted
        assert all(is_other(replies[name], real[name]) for name in (first, second))


def test_so_many_are_counted_and_no_more() -> None:
    rng = Random(1)
    keys = {f"k{row}": key(row, 100) for row in range(5000)}
    wild = {name: answer("x", rng.randint(20, 500)) for name in keys}
    assert len(to_count(keys, wild, rng)) == MOST_COUNTED + BY_LOT
    tame = {name: answer("x", 140) for name in keys}
    assert len(to_count(keys, tame, rng)) == BY_LOT
    assert len(to_count({"k0": keys["k0"]}, {"k0": tame["k0"]}, rng)) == 1


def test_counts_that_the_service_did_not_tell_are_not_held_against_a_prompt() -> None:
    keys = {"k0": key(0)}
    assert to_count(keys, {"k0": paid("x", usage=Usage(9, estimated=True))}, Random(0)) == []


def test_the_lines_that_are_counted_are_found_in_the_file_of_requests() -> None:
    keys = [key(row) for row in range(3)]
    lines = [b'{"key":"k0","request":{"a":"k1"}}\n', b'{"custom_id":"k1","body":{}}\n', b'{"key":"k2","request":{}}\n']
    assert lines_of(lines, keys[1:]) == {"k1": lines[1], "k2": lines[2]}


# ---- how large, and how often


def test_a_batch_is_as_large_as_the_service_early_answers_and_what_may_wait_allow() -> None:
    bounds = Bounds(20_000, 100_000_000)
    assert full_at(bounds, 10_000_000, 10**9) == Size(20_000, 100_000_000, 250_000_000)
    assert full_at(bounds, 500_000, 10**7).lines == 500_000 // PARTS
    assert full_at(bounds, 10, 10**7).lines == LEAST_LINES
    assert full_at(bounds, 10, 3_000_000).tokens == 750_000


def test_one_line_is_never_too_large_for_a_batch_of_its_own() -> None:
    assert Size(10, 100, 100).holds(Size(1, 100, 900)) and not Size(10, 100, 100).holds(Size(2, 90, 101))


def test_tries_are_kept_over_sessions_and_a_torn_one_is_none(tmp_path: Path) -> None:
    folder = tmp_path
    names = [f"{number:032x}"[::-1] for number in range(1, 4)]
    first = Tries(folder)
    first.open()
    first.add(names[:2])
    first.add(names[:1])
    first.add(names[2:], 2)
    assert [first.of(name) for name in names] == [2, 1, 2] and first.of("f" * 32) == 0
    with (folder / "tries").open("ab") as file:
        file.write(b"abc")
    second = Tries(folder)
    second.open()
    assert [second.of(name) for name in names] == [2, 1, 2]
    second.add(names[1:2])
    third = Tries(folder)
    third.open()
    assert [third.of(name) for name in names] == [2, 2, 2]
