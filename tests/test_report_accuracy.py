"""Estimate against outcome."""

from decimal import Decimal
from pathlib import Path

import orjson
import pytest
from asking import MODEL
from batch_stores import calls, fetched
from stores import CENT, answer, opened, paid, prompt, result

from pipeline.console.reports import show_accuracy
from pipeline.events import SessionEnded, SessionPlanned, SessionStarted
from pipeline.report import summarize
from pipeline.report.accuracy import Amounts, baseline, compare, logged
from pipeline.report.events import Event, Started, parse_events


def plan(rows: int = 10, at_s: float = 0.0, *, pilot: bool = False, redo: bool = False, **steps: Amounts) -> Event:
    told = {"event": SessionPlanned.kind, "at_s": at_s, "rows": rows, "pilot": pilot, "redo": redo}
    told["steps"] = logged(steps)
    (event,) = parse_events([orjson.dumps({**told, "seconds": 60.0, "based_on": "no answers yet"})])
    return event


ONE = Amounts(10, 1000, 200, Decimal("0.5"))


def test_amounts_survive_the_log() -> None:
    found = baseline([plan(answer=ONE, map=Amounts(1, 2, 3, None))])
    assert found is not None
    assert found.steps == {"answer": ONE, "map": Amounts(1, 2, 3, None)}


def test_a_run_without_a_plan_has_no_accuracy() -> None:
    assert baseline([Started(event="start", rows=3)]) is None


def test_a_pilot_is_no_estimate_of_the_run() -> None:
    assert baseline([plan(pilot=True, answer=ONE)]) is None
    found = baseline([plan(pilot=True), plan(at_s=5.0, answer=ONE)])
    assert found is not None
    assert (found.at_s, found.position) == (5.0, 1)


def test_the_first_plan_for_as_many_rows_as_now_counts() -> None:
    events = [plan(3, 1.0), plan(10, 2.0), plan(10, 3.0)]
    found = baseline(events)
    assert found is not None
    assert found.at_s == 2.0


def test_a_redo_is_held_to_its_own_plan_until_the_run_goes_on() -> None:
    first, redo = plan(10, 1.0, answer=ONE), plan(10, 2.0, redo=True, answer=Amounts(2, 20, 10, CENT))
    found = baseline([first, redo])
    assert found is not None and (found.redo, found.at_s, found.without) == (True, 2.0, ((0.0, 2.0),))
    nothing = plan(10, 3.0, redo=True)
    found = baseline([first, redo, nothing])
    assert found is not None and (found.redo, found.at_s) == (True, 2.0)
    found = baseline([first, redo, nothing, plan(10, 4.0)])
    assert found is not None and (found.redo, found.at_s, found.without) == (False, 1.0, ((2.0, 4.0),))
    assert baseline([redo]) is not None and baseline([nothing]) is None


@pytest.mark.parametrize("is_last", [True, False])
def test_the_report_tells_what_was_redone_from_the_run(
    tmp_path: Path, is_last: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "runs" / "notes"
    plans = [(150.0, 3, False, 60.0), (250.0, 2, True, 20.0), *([] if is_last else [(350.0, 0, False, 0.0)])]
    with opened(directory) as store:
        for at_s, planned, is_redo, seconds in plans:
            steps = logged({"answer": Amounts(planned, 10 * planned, 5 * planned, CENT * planned)} if planned else {})
            store.log(SessionPlanned(at_s, 3, False, steps, seconds, "", redo=is_redo))
            store.log(SessionStarted(3, 1))
            for row in range(planned + is_redo):
                store.append_call(prompt(row, f"{at_s} {row}"), MODEL, paid(finished_at=at_s + 1 + row))
                store.append_result(result(row))
            store.log(SessionEnded(seconds / 2, 3, 3, Decimal(0), 0, 0, Decimal(0), 0, 0, "finished", ""))
    summary = summarize(directory)
    accuracy = summary.accuracy
    assert accuracy is not None and summary.calls == 6
    assert accuracy.as_json()["redo"] is accuracy.redo is is_last
    assert (accuracy.estimated["answer"].calls, accuracy.actual["answer"].calls) == ((2, 3) if is_last else (3, 3))
    assert (accuracy.estimated_s, accuracy.actual_s) == ((20.0, 10.0) if is_last else (60.0, 30.0))
    show_accuracy(accuracy)
    assert ("the redo's estimate" in capsys.readouterr().out) is is_last


def test_what_was_bought_before_the_plan_is_part_of_both_sides() -> None:
    found = baseline([plan(answer=ONE)])
    assert found is not None
    before = Amounts(2, 100, 20, Decimal("0.1"))
    compared = compare(found, {"answer": before}, {"answer": Amounts(12, 1200, 250, Decimal("0.7"))}, 70.0)
    assert compared.estimated["answer"] == compared.estimated["total"] == Amounts(12, 1100, 220, Decimal("0.6"))
    assert compared.actual["total"] == Amounts(12, 1200, 250, Decimal("0.7"))
    assert compared.as_json()["answer"] == {
        "calls": [12, 12],
        "input_tokens": [1100, 1200],
        "output_tokens": [220, 250],
        "cost_usd": [0.6, 0.7],
    }


def test_a_step_that_was_not_foreseen_is_shown_and_an_unknown_price_stays_unknown() -> None:
    found = baseline([plan(answer=Amounts(1, 1, 1, None))])
    assert found is not None
    compared = compare(found, {}, {"map": ONE}, 1.0)
    assert compared.estimated["map"] == Amounts()
    assert compared.estimated["total"].cost_usd is None
    assert compared.actual["total"] == ONE


def test_the_report_tells_calls_before_the_plan_from_those_after_it(tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "notes"
    with opened(directory) as store:
        for row, finished_at in enumerate((100.0, 200.0, 300.0)):
            store.append_call(prompt(row), MODEL, paid(finished_at=finished_at))
            store.append_result(result(row))
        steps = logged({"answer": Amounts(2, 20, 10, CENT * 3)})
        store.log(SessionPlanned(150.0, 3, False, steps, 60.0, ""))
        store.log(SessionStarted(3, 1))
        store.log(SessionEnded(50.0, 3, 3, Decimal(0), 0, 0, Decimal(0), 0, 0, "finished", ""))
    accuracy = summarize(directory).accuracy
    assert accuracy is not None
    assert (accuracy.estimated["answer"].calls, accuracy.actual["answer"].calls) == (3, 3)
    assert accuracy.estimated["answer"].cost_usd == CENT * 4
    assert accuracy.actual["answer"].cost_usd == CENT * 3
    assert (accuracy.estimated_s, accuracy.actual_s) == (60.0, 50.0)


def test_calls_by_lane_are_held_to_the_plan_of_lanes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "runs" / "notes"
    with opened(directory) as store:
        store.append_call(prompt(9), MODEL, paid(finished_at=100.0))
        steps = logged({"answer": Amounts(3, 30, 15, CENT * 3)})
        store.log(SessionPlanned(150.0, 3, False, steps, 60.0, "", {"batch": 2, "standard": 1}))
        number = fetched(store.batches, 0, 1)
        store.batches.take(number, list(calls(store.batches, number))[:1])
        for row in (1, 2):
            store.append_call(prompt(row), MODEL, paid(finished_at=300.0, lane="flex" if row == 1 else "standard"))
    accuracy = summarize(directory).accuracy
    assert accuracy is not None
    assert accuracy.lanes == {"batch": (2, 1), "flex": (0, 1), "standard": (2, 2)}
    assert accuracy.as_json()["lanes"] == {
        "batch": {"calls": [2, 1]},
        "flex": {"calls": [0, 1]},
        "standard": {"calls": [2, 2]},
    }
    show_accuracy(accuracy)
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["in", "batch", "-50.0%"] in shown and ["in", "flex", "not", "seen"] in shown


def test_calls_of_every_part_and_of_the_journal_count(tmp_path: Path) -> None:
    directory = tmp_path / "runs" / "notes"
    with opened(directory, seal_rows=1) as store:
        store.log(SessionPlanned(0.0, 2, False, logged({"answer": ONE}), 1.0, ""))
        answer(store, 0)
        answer(store, 1)
        summary = summarize(directory)
        assert summary.accuracy is not None
        assert summary.accuracy.actual["answer"].calls == summary.calls == 2
