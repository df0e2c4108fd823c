"""Exit codes: 2 says that nothing was spent."""

import errno

import pytest

from pipeline.errors import AuthError, BudgetReached, InputError, PipelineError, RunStateError, as_known, resumable_once


@pytest.mark.parametrize("error", [AuthError("no key"), InputError("no table"), RunStateError("damaged")])
def test_a_known_error_is_a_2_before_and_a_3_after_spending(error: PipelineError) -> None:
    with pytest.raises(PipelineError) as before, resumable_once(lambda error: False):
        raise error
    assert before.value is error and error.exit_code == 2
    with pytest.raises(PipelineError) as after, resumable_once(lambda error: True):
        raise ExceptionGroup("of a task group", [error])
    assert after.value is error and error.exit_code == 3
    assert error.message.endswith("\nWhat was answered is kept.")


def test_what_can_be_continued_is_a_3_in_any_case() -> None:
    with pytest.raises(BudgetReached) as caught, resumable_once(lambda error: True):
        raise BudgetReached("no more")
    assert (caught.value.exit_code, caught.value.message) == (3, "no more")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE, errno.EIO, errno.EROFS, errno.EACCES])
def test_what_the_system_refuses_is_no_bug(number: int) -> None:
    known = as_known(OSError(number, "no", "runs/x"))
    assert isinstance(known, RunStateError) and "runs/x" in known.message and known.hint
    with pytest.raises(RunStateError) as caught, resumable_once(lambda error: True):
        raise OSError(number, "no")
    assert caught.value.exit_code == 3


def test_a_bug_stays_one() -> None:
    assert as_known(ValueError("x")) is None and as_known(OSError("x")) is None
    with pytest.raises(ValueError, match="x"), resumable_once(lambda error: True):
        raise ValueError("x")
