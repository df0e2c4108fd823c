"""Which requests were refused, by number: is it more than usual, and does it hang on our pace?"""

from random import Random

import pytest

from pipeline.quota.refusals import LEAST, Refusals, Ticket, excess, most_likely


def add(refusals: Refusals, *numbers: int) -> None:
    for number in numbers:
        refusals.add(left(number))


def left(number: int) -> Ticket:
    """A request that left as the clock showed its number of tenths of a second."""
    return Ticket(number / 10.0, number=number)


def test_what_is_usual_is_no_excess_and_what_triples_is() -> None:
    rng = Random(1)
    refused = [left(number) for number in range(2000) if rng.random() < 0.05]
    assert excess(refused, 0.05)[0] < 4
    more = [*refused, *(left(number) for number in range(2000, 2300) if rng.random() < 0.2)]
    total, first = excess(more, 0.05)
    assert total >= 8
    assert 1900 <= more[first].number <= 2100, "and where it began is known"


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
            refusals.add(left(number))
        found = refusals.verdict(float(number), number)
        if found:
            return found
    return None


@pytest.mark.parametrize("share", [0.02, 0.05, 0.2, 0.5, 0.8])
def test_the_same_share_at_a_slower_pace_is_chance_and_none_is_the_pace(share: float) -> None:
    assert asked(share, share) == "chance"
    assert asked(0.0, share) == "pace"


def test_what_a_slower_pace_is_refused_all_the_same_is_usual_from_then_on() -> None:
    """By chance more were refused for a while: each such while took a part of the pace, down to two thirds of it."""
    refusals = Refusals()
    refusals.ask(0, 0.03, LEAST)
    add(refusals, 100, 200, 300)
    assert refusals.verdict(60.0, 500) == "pace"
    add(refusals, 600, 650, 700, 750, 800, 850)
    assert not refusals.asking


def test_once_a_share_is_usual_it_asks_no_more_until_it_triples() -> None:
    refusals, rng = Refusals(), Random(1)
    refusals.judge(0.0, 0, share=0.2)
    number = 0
    for _ in range(1000):
        number += 1
        if rng.random() < 0.2:
            refusals.add(left(number))
        assert not refusals.asking
    for _ in range(60):
        number += 1
        if rng.random() < 0.7:
            refusals.add(left(number))
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
    assert not refusals.add(left(99))
    assert refusals.add(left(101))


def row(refusals: Refusals, sent: int) -> list[int]:
    return [ticket.number for ticket in refusals.all_refused(sent)]


def test_all_refused_in_a_row_is_no_chance_but_for_one_that_overtook_the_others() -> None:
    refusals = Refusals()
    add(refusals, 5, 6, 8, 9)
    assert row(refusals, 9) == [5, 6, 8, 9]
    assert row(refusals, 12) == [], "three have got through since"


def test_not_all_are_refused_where_some_were_long_before() -> None:
    refusals = Refusals()
    add(refusals, 1, 3, 20, 21, 22, 23)
    assert row(refusals, 23) == []


def test_where_half_is_usual_four_in_a_row_are_nothing() -> None:
    refusals = Refusals()
    refusals.judge(0.0, 20, share=0.5)
    add(refusals, 21, 22, 23, 24)
    assert row(refusals, 24) == []


def test_the_largest_share_that_is_likely_comes_closer_as_more_is_known() -> None:
    few, many = most_likely(5, 10), most_likely(500, 1000)
    assert 0.5 < many < few < 0.8
    assert most_likely(10, 10) > 0.99
