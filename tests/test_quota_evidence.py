"""What a server had counted when it refused, read from how long it says to wait."""

import pytest

from pipeline.quota.evidence import last_minute
from pipeline.quota.ledger import TokenLedger
from pipeline.quota.server_clock import MinutePhase

BOUNDS = (20.0, 20.1)  # the server's minutes begin at 40, 100, 160 of our clock


def sent(*spans: tuple[float, float, int]) -> TokenLedger:
    """A ledger with so many requests of 10 tokens, evenly spread over each span."""
    ledger = TokenLedger(10**9, MinutePhase())
    for begin, end, count in spans:
        for number in range(count):
            ledger.settle(ledger.reserve(begin + (end - begin) * number / count, 10), None)
    return ledger


def counted(ledger: TokenLedger, left_at: float, wait_s: float) -> tuple[float, float]:
    return last_minute(ledger, BOUNDS, 0, left_at, left_at + 0.1, wait_s)


def test_a_wait_until_the_minute_ends_tells_of_fixed_minutes() -> None:
    assert counted(sent((0, 90, 900)), 90.0, 9.9) == pytest.approx((500, 500), abs=2)


def test_a_wait_until_the_first_of_the_last_minute_is_a_minute_old_tells_of_a_sliding_log() -> None:
    assert counted(sent((0, 36, 600)), 36.0, 23.9) == pytest.approx((600, 600), abs=2)


def test_a_much_shorter_wait_than_a_log_would_need_tells_of_a_counter() -> None:
    # 40 s of the minute before and 10 s of this one; of the one before five sixths still count
    assert counted(sent((0, 50, 500)), 50.0, 0.1) == pytest.approx((100 + 400 * 5 / 6,) * 2, rel=0.01)


def test_where_nothing_tells_it_is_between_the_two() -> None:
    least, most = counted(sent((0, 50, 500), (50, 90, 800)), 90.0, 0.1)
    assert least == pytest.approx(100 + 800 + 400 / 6, rel=0.01)
    assert most == pytest.approx(1000, rel=0.01)


def test_without_the_servers_clock_it_is_the_sum_of_a_minute() -> None:
    assert last_minute(sent((0, 90, 900)), None, 0, 90.0, 90.1, 9.9) == pytest.approx((600, 600), abs=2)
    assert last_minute(sent((0, 90, 900)), None, 1, 90.0, 90.1, 9.9) == pytest.approx((6000, 6000), abs=20)


def test_what_left_later_does_not_count() -> None:
    assert last_minute(sent((0, 90, 900)), None, 0, 80.0, 90.1, 9.9) == pytest.approx((600, 600), abs=2)
