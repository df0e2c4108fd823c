"""Which requests were refused, by number: is it more than usual, and does it hang on our pace?"""

from random import Random

import pytest

from pipeline.quota.refusals import LEAST, Refusals, excess


def add(refusals: Refusals, *numbers: int) -> None:
    for number in numbers:
        refusals.add(number, float(number))


def test_what_is_usual_is_no_excess_and_what_triples_is() -> None:
    rng = Random(1)
    refused = [(number, 0.0) for number in range(2000) if rng.random() < 0.05]
    assert excess(refused, 0.05)[0] < 4
    more = [*refused, *((number, 0.0) for number in range(2000, 2300) if rng.random() < 0.2)]
    total, first = excess(more, 0.05)
    assert total >= 8
    assert 1900 <= more[first][0] <= 2100, "and where it began is known"


def test_five_refusals_raise_the_question_and_rare_ones_never_do() -> None:
    refusals, rare = Refusals(), Refusals()
    add(refusals, 10, 20, 30, 40)
    assert not refusals.asking
    add(refusals, 50)
    assert refusals.asking
    add(rare, *range(0, 100_000, 500))
    assert not rare.asking


def asked(share_now: float, share_then: float, usual: float = LEAST) -> str | None:
    """The verdict where such a share was refused before, and such a one at the slower pace."""
    refusals, rng = Refusals(), Random(1)
    refusals.ask(0, share_then, usual)
    for number in range(1, 2000):
        if rng.random() < share_now:
            refusals.add(number, float(number))
        found = refusals.verdict(float(number), number)
        if found:
            return found
    return None


@pytest.mark.parametrize("share", [0.02, 0.05, 0.2, 0.5, 0.8])
def test_the_same_share_at_a_slower_pace_is_chance_and_none_is_the_pace(share: float) -> None:
    assert asked(share, share) == "chance"
    assert asked(0.0, share) == "pace"


def test_once_a_share_is_usual_it_asks_no_more_until_it_triples() -> None:
    refusals, rng = Refusals(), Random(1)
    refusals.judge(0.0, 0, share=0.2)
    number = 0
    for _ in range(1000):
        number += 1
        if rng.random() < 0.2:
            refusals.add(number, float(number))
        assert not refusals.asking
    for _ in range(60):
        number += 1
        if rng.random() < 0.7:
            refusals.add(number, float(number))
    assert refusals.asking


def test_a_share_that_has_gone_is_no_longer_usual() -> None:
    refusals = Refusals()
    refusals.judge(0.0, 0, share=0.8)
    add(refusals, *range(1, 5000, 100))
    assert refusals.share < 0.05


def test_a_usual_share_is_asked_about_again_after_some_minutes() -> None:
    refusals = Refusals()
    assert not refusals.is_stale(1000.0, 1000)
    refusals.judge(0.0, 0, share=0.2)
    assert not refusals.is_stale(60.0, 1000)
    assert refusals.is_stale(180.0, 3000)


def test_old_numbers_say_nothing_any_more() -> None:
    refusals = Refusals()
    refusals.judge(10.0, 100)
    assert not refusals.add(99, 9.0)
    assert refusals.add(101, 11.0)


def test_all_refused_in_a_row_is_no_chance_but_for_one_that_overtook_the_others() -> None:
    refusals = Refusals()
    add(refusals, 5, 6, 8, 9)
    assert [number for number, _ in refusals.row(9)] == [5, 6, 8, 9]
    assert not refusals.is_chance(refusals.row(9))
    assert refusals.row(12) == [], "three have got through since"
    refusals.judge(0.0, 20, share=0.5)
    add(refusals, 21, 22, 23, 24)
    assert refusals.is_chance(refusals.row(24)), "where half is refused four in a row are nothing"
