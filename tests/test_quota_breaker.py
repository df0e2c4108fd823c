from math import inf
from random import Random

from pipeline.quota.breaker import LONGEST_PAUSE_S, QUIET_S, Breaker


def breaker(threshold: int = 3) -> Breaker:
    return Breaker(threshold, Random(1))


def paused_until(one: Breaker, now: float) -> float:
    opens_at = one.opens_at(now)
    assert opens_at is not None
    return opens_at


def test_it_stays_open_while_successes_come_between() -> None:
    one = breaker()
    for now in range(20):
        assert not one.failed(now, now - 0.5)
        assert not one.failed(now, now - 0.5)
        one.succeeded()
        assert one.opens_at(now) is None


def test_failures_in_a_row_pause_then_one_request_probes() -> None:
    one, closed = breaker(), []
    for _ in range(3):
        one.failed(10.0, 9.0)
        closed.append(one.tripped)
    assert closed == [False, False, True]
    opens_at = paused_until(one, 10.0)
    assert 10.75 <= opens_at <= 11.25
    assert one.opens_at(opens_at) is None
    one.sent(opens_at)
    assert one.opens_at(opens_at) == inf
    one.succeeded(opens_at)
    assert one.opens_at(opens_at) is None
    one.sent(opens_at)
    assert one.opens_at(opens_at) is None


def test_failed_probes_double_the_pause_up_to_a_minute() -> None:
    one, now, pauses = breaker(1), 0.0, []
    for _ in range(10):
        one.failed(now, now)
        opens_at = paused_until(one, now)
        pauses.append(opens_at - now)
        now = opens_at
        one.sent(now)
    assert all(0.7 * 2**n <= min(pauses[n], 60) <= 1.3 * 2**n for n in range(6))
    assert max(pauses) <= 1.25 * LONGEST_PAUSE_S


def test_what_was_in_flight_when_the_pause_began_does_not_lengthen_it() -> None:
    one = breaker(1)
    one.failed(10.0, 9.0)
    opens_at = one.opens_at(10.0)
    for _ in range(50):
        assert not one.failed(10.1, 9.5)
    assert one.opens_at(10.1) == opens_at


def test_an_answer_to_what_left_before_the_outage_does_not_end_it() -> None:
    one = breaker()
    for _ in range(3):
        one.failed(10.0, 9.9)
        one.succeeded(9.8)
    assert one.tripped
    one.sent(12.0)
    one.succeeded(9.8)
    assert one.opens_at(12.0) == inf, "the probe is still on its way"
    one.succeeded(12.0)
    assert not one.tripped


def test_failures_that_come_back_before_the_answers_are_not_all_there_is() -> None:
    """One in five fails at once, the others take ten seconds: nothing has been answered yet, and nothing is wrong."""
    one = breaker()
    for number in range(100):
        one.sent(float(number))
        if number % 5 == 0:
            one.failed(number + 0.1, float(number))
    assert not one.tripped


def test_what_hangs_is_judged_by_what_left_before_it() -> None:
    """Forty wait a minute in vain, each followed by another: those that left since may well fare the same."""
    one = breaker(8)
    for number in range(40):
        one.sent(float(number))
    for number in range(8):
        assert not one.tripped
        one.failed(60.0 + number, float(number))
        one.sent(60.0 + number)
    assert one.tripped


def test_an_outage_is_told_once_when_its_first_probe_fails_and_then_its_end() -> None:
    one, now, told = breaker(1), 0.0, []
    for _ in range(5):
        told.append(one.failed(now, now))
        now = paused_until(one, now)
        one.sent(now)
    assert told == [False, True, False, False, False]
    assert one.succeeded(now)
    assert not one.succeeded(now)


def test_a_pause_that_its_first_probe_ends_is_not_told() -> None:
    one = breaker(1)
    assert not one.failed(10.0, 9.0)
    now = paused_until(one, 10.0)
    one.sent(now)
    assert not one.succeeded(now)


def test_the_time_down_is_between_failures_of_one_outage() -> None:
    one = breaker(1)
    assert one.down_s() == 0.0
    one.failed(100.0, 99.0)
    one.failed(400.0, 399.0)
    assert one.down_s() == 300.0
    one.failed(400.0 + QUIET_S + 1, 1300.0)  # a night later
    assert one.down_s() == 0.0
    one.succeeded()
    assert one.down_s() == 0.0


def test_a_probe_of_which_nobody_will_hear_is_made_again() -> None:
    one = breaker(1)
    one.failed(10.0, 9.0)
    opens_at = paused_until(one, 10.0)
    one.sent(opens_at)
    one.lost(9.5)
    assert one.opens_at(opens_at) == inf
    one.lost(opens_at)
    assert one.opens_at(opens_at) is None and one.tripped


def test_what_was_lost_says_nothing_for_or_against_an_outage() -> None:
    one = breaker(3)
    for at in range(100):
        one.sent(float(at))
    for at in range(97):
        one.lost(float(at))
    for sent_at in (97.0, 98.0, 99.0):
        one.failed(100.0, sent_at)
    assert one.tripped
