import anyio
import pytest
from servers import SERVERS
from vclock import run

from pipeline.quota.pacer import CAREFUL_S, JITTER_S, RequestPacer, careful_s, spacing


async def grants(pacer: RequestPacer, seconds: float) -> list[float]:
    times = []
    with anyio.move_on_after(seconds):
        while True:
            await pacer.acquire()
            times.append(anyio.current_time())
    return times


@pytest.mark.parametrize("rpm", [1, 5, 15, 100, 200, 1000, 30_000])
@pytest.mark.parametrize("strict", [False, True])
def test_burst_and_rate_keep_every_padded_window_within_the_limit(rpm: int, strict: bool) -> None:
    burst, period = spacing(rpm, strict=strict)
    reserved = rpm >= 100 or (strict and rpm > 1)
    assert (burst if reserved and rpm > 2 else 0) + (60 + JITTER_S) / period <= rpm + 1e-9
    assert burst == max(1, int(0.2 * rpm / 60.3))


@pytest.mark.parametrize("rpm", [200, 1000, 2000, 30_000])
def test_the_padding_costs_less_than_one_percent(rpm: int) -> None:
    _, period = spacing(rpm)
    assert 60 / period >= 0.99 * rpm


@pytest.mark.parametrize("server", SERVERS)
def test_every_server_admits_a_paced_minute_from_any_phase(server: str) -> None:
    sent = run(grants, RequestPacer(600, drained=False), 200.0)
    for phase in range(0, 60, 7):
        model = SERVERS[server](600)
        for at in sent:
            assert model.delay(at + phase, 1) == 0.0
            model.add(at + phase, 1)
    assert len(sent) >= 0.99 * 2000


def test_drained_grants_no_burst() -> None:
    full, drained = (run(grants, RequestPacer(6000, drained=value), 0.05) for value in (False, True))
    assert len(full) >= 19
    assert len(drained) <= 6


def test_a_late_wake_up_is_caught_up_on() -> None:
    async def lag() -> int:
        pacer = RequestPacer(3000, drained=True)
        await pacer.acquire()
        await anyio.sleep(0.15)
        return len(await grants(pacer, 0.001))

    assert run(lag) in (7, 8)  # 0.15 s at 50 a second


@pytest.mark.parametrize("rpm", [5, 60, 1000, 6000])
def test_changing_the_limit_grants_no_second_burst(rpm: int) -> None:
    async def change_often() -> list[float]:
        pacer = RequestPacer(rpm, drained=True)
        times: list[float] = []
        for _ in range(20):
            times += await grants(pacer, 30.0 * 60 / rpm)
            pacer.change(rpm, anyio.current_time())
        return times

    sent = run(change_often)
    burst, period = spacing(rpm)
    for first in range(0, len(sent), 3):
        for last in range(first, min(len(sent), first + 3 * rpm), 5):
            assert last - first + 1 <= burst + (sent[last] - sent[first]) / period + 1e-6


def test_a_changed_limit_holds_at_once() -> None:
    async def fall() -> tuple[int, int]:
        pacer = RequestPacer(600, drained=False)
        before = len(await grants(pacer, 60.0))
        pacer.change(60, anyio.current_time())
        return before, len(await grants(pacer, 60.0))

    before, after = run(fall)
    assert 590 <= before <= 602
    assert 58 <= after <= 60


def test_acquire_survives_cancellation_without_losing_a_grant() -> None:
    async def cancel_often() -> int:
        pacer, count = RequestPacer(600, drained=True), 0
        while anyio.current_time() < 60.0:
            with anyio.move_on_after(0.033):
                await pacer.acquire()
                count += 1
        return count

    assert run(cancel_often) >= 590


def test_where_the_limit_may_be_found_out_two_follow_within_the_time_of_a_refusal() -> None:
    assert careful_s(60.0 / 1000) == CAREFUL_S
    assert careful_s(60.0 / 10_000) == pytest.approx(4 * 60.0 / 10_000), "high limits are found in minutes too"


def test_a_run_takes_the_pace_that_others_leave_and_yields_it_at_once() -> None:
    """Two runs, told of each other's requests when they left: at first only one wants any, then both do."""

    async def share() -> dict[str, list[float]]:
        pacers = {"one": RequestPacer(600, drained=True), "other": RequestPacer(600, drained=True)}
        for pacer in pacers.values():
            pacer.change(600, 0.0, runs=2)
        sent: dict[str, list[float]] = {"one": [], "other": []}

        async def send(name: str, begin: float) -> None:
            await anyio.sleep(begin)
            while anyio.current_time() < 120.0:
                await pacers[name].acquire()
                sent[name].append(anyio.current_time())
                for other in pacers.keys() - {name}:
                    pacers[other].charge([anyio.current_time()])

        async with anyio.create_task_group() as group:
            group.start_soon(send, "one", 0.0)
            group.start_soon(send, "other", 60.0)
        return sent

    sent = run(share)
    alone = [at for at in sent["one"] if at < 60.0]
    assert 590 <= len(alone) <= 600
    parts = [len([at for at in sent[name] if at >= 60.0]) for name in sent]
    assert min(parts) >= 290
    together = sorted(sent["one"] + sent["other"])
    for first in range(0, len(together) - 600, 7):
        assert together[first + 600] - together[first] >= 60.0, "no minute has more than the limit"


def test_each_run_beside_the_first_costs_one_request_in_reserve() -> None:
    for runs in (1, 2, 3):
        burst, period = spacing(1000, runs=runs)
        assert burst + runs - 1 + (60 + JITTER_S) / period == pytest.approx(1000)
