from math import inf
from random import Random

from pipeline.quota.breaker import LONGEST_PAUSE_S, QUIET_S, Breaker


def breaker(threshold: int = 3) -> Breaker:
    return Breaker(threshold, Random(1))


def test_it_stays_open_while_successes_come_between():
    one = breaker()
    for now in range(20):
        assert not one.failed(now, now - 0.5)
        assert not one.failed(now, now - 0.5)
        one.succeeded()
        assert one.opens_at(now) is None


def test_failures_in_a_row_pause_then_one_request_probes():
    one = breaker()
    assert [one.failed(10.0, 9.0) for _ in range(3)] == [False, False, True]
    opens_at = one.opens_at(10.0)
    assert opens_at is not None and 10.75 <= opens_at <= 11.25
    assert one.opens_at(opens_at) is None
    one.sent()
    assert one.opens_at(opens_at) == inf
    one.succeeded()
    assert one.opens_at(opens_at) is None
    one.sent()
    assert one.opens_at(opens_at) is None


def test_failed_probes_double_the_pause_up_to_a_minute():
    one, now, pauses = breaker(1), 0.0, []
    for _ in range(10):
        one.failed(now, now)
        opens_at = one.opens_at(now)
        pauses.append(opens_at - now)
        now = opens_at
        one.sent()
    assert all(0.7 * 2**n <= min(pauses[n], 60) <= 1.3 * 2**n for n in range(6))
    assert max(pauses) <= 1.25 * LONGEST_PAUSE_S


def test_what_was_in_flight_when_the_pause_began_does_not_lengthen_it():
    one = breaker(1)
    one.failed(10.0, 9.0)
    opens_at = one.opens_at(10.0)
    for _ in range(50):
        assert not one.failed(10.1, 9.5)
    assert one.opens_at(10.1) == opens_at


def test_a_probe_that_tells_nothing_lets_another_go():
    one = breaker(1)
    one.failed(10.0, 9.0)
    now = one.opens_at(10.0)
    one.sent()
    one.undecided()
    assert one.opens_at(now) is None


def test_weight_counts_for_many():
    one = breaker(20)
    assert one.failed(1.0, 0.5, weight=20)


def test_the_time_down_is_between_failures_of_one_outage():
    one = breaker(1)
    assert one.down_s() == 0.0
    one.failed(100.0, 99.0)
    one.failed(400.0, 399.0)
    assert one.down_s() == 300.0
    one.failed(400.0 + QUIET_S + 1, 1300.0)  # a night later
    assert one.down_s() == 0.0
    one.succeeded()
    assert one.down_s() == 0.0
