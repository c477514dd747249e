"""Waits with a time limit, on the real clock."""

import time

import pytest

from dagster_mlops.core.waits import retry, wait_while


def test_a_wait_ends_as_soon_as_the_problem_is_gone():
    start = time.monotonic()
    wait_while(lambda: time.monotonic() < start + 0.2, timeout=30, error=lambda _: TimeoutError(), pause=0.01)
    assert 0.2 <= time.monotonic() - start < 5


def test_a_wait_that_takes_too_long_raises_the_error_with_the_last_problem():
    problems = iter(f"answer {number}" for number in range(1000))
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"^answer [1-9]"):
        wait_while(lambda: next(problems), timeout=0.2, error=TimeoutError, pause=0.01)
    assert time.monotonic() - start >= 0.2


def test_an_error_of_the_problem_itself_ends_the_wait_at_once():
    def problem() -> str:
        raise ChildProcessError("ended")

    with pytest.raises(ChildProcessError):
        wait_while(problem, timeout=30, error=TimeoutError)


class Flaky:
    """Fails a number of times, then succeeds."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures, self.error, self.calls = failures, error, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return "done"


def test_a_transient_error_is_tried_again():
    action = Flaky(3, OSError("busy"))
    assert retry(action, is_transient=lambda error: "busy" in str(error), pauses=[0, 0, 0]) == "done"
    assert action.calls == 4


def test_the_error_after_the_last_pause_passes_through():
    action = Flaky(3, OSError("busy"))
    with pytest.raises(OSError, match="busy"):
        retry(action, is_transient=lambda _: True, pauses=[0, 0])
    assert action.calls == 3


def test_an_error_that_does_not_pass_is_not_tried_again():
    action = Flaky(1, PermissionError("denied"))
    with pytest.raises(PermissionError):
        retry(action, is_transient=lambda error: "busy" in str(error))
    assert action.calls == 1


def test_no_attempt_starts_after_the_timeout():
    action = Flaky(1000, OSError("busy"))
    start = time.monotonic()
    with pytest.raises(OSError, match="busy"):
        retry(action, is_transient=lambda _: True, timeout=0.3)
    assert 0.3 <= time.monotonic() - start < 5
    assert action.calls > 1
