"""Errors that one of ours was raised from: what Dagster stores of them, and tracebacks show, has no credential."""

import pickle
import subprocess
import sys
import traceback
from pathlib import Path

import dagster as dg
import pydantic
import pytest

from dagster_mlops.core.failures import not_retried, raised_as
from dagster_mlops.core.masked_errors import masked_error
from dagster_mlops.errors import ToolError
from dagster_mlops.monitoring.results import saved_report
from dagster_mlops.provenance import Faulty, Inaccessible
from dagster_mlops.serving.local.processes import tail

PASSWORD = "Zq7xK2mN"
TEXT = "host=db password=" + PASSWORD


class Settings(pydantic.BaseModel):
    port: int


def _settings_error() -> Exception:
    with pytest.raises(pydantic.ValidationError) as caught:
        Settings(port=TEXT)  # type: ignore[arg-type]
    return caught.value


ERRORS = [
    *(ValueError(TEXT), KeyError(TEXT), OSError(28, TEXT, "/data"), SyntaxError(TEXT), _settings_error()),
    ExceptionGroup("many", [ValueError(TEXT)]),
    UnicodeDecodeError("utf-8", b"x", 0, 1, TEXT),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_the_cause_of_an_error_of_ours_shows_a_mask(error):
    with pytest.raises(ToolError) as caught, raised_as(ToolError, "it fails", Exception):
        raise error
    text = "".join(traceback.format_exception(caught.value))
    assert PASSWORD not in text and "password=***" in text and text.count("Traceback") == 2
    cause = caught.value.__cause__
    assert type(cause).__name__ == type(error).__name__ and getattr(cause, "errno", None) == getattr(
        error, "errno", None
    )
    assert "it fails" in str(pickle.loads(pickle.dumps(caught.value)))


def test_a_cause_far_below_and_an_error_during_handling_show_a_mask():
    def fail() -> None:
        try:
            raise ValueError(TEXT)
        except ValueError as error:
            raise RuntimeError("harmless") from error

    with pytest.raises(ToolError) as caught:
        try:
            fail()
        except RuntimeError:
            raise ToolError("no from")  # noqa: B904
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


def test_an_error_without_a_credential_stays_the_same_object():
    cause = ValueError("5 rows")
    error = ToolError("x")
    error.__cause__ = cause
    assert error.__cause__ is cause and masked_error(cause) is cause


def test_notes_and_values_that_are_no_text_show_a_mask():
    error = ToolError(ValueError(TEXT))
    error.add_note(TEXT)
    shown = "".join(traceback.format_exception(error))
    assert shown.count("host=db password=***") == 2 and PASSWORD not in shown
    assert PASSWORD not in str(ToolError({"dsn": TEXT}))


_UNCAUGHT = f"""
import sys, threading
from dagster_mlops.errors import ToolError

def fail():
    try:
        raise ValueError("host=db password=" + "".join({[*PASSWORD]!r}))
    except ValueError as error:
        raise ToolError("it fails") from error

def use():
    try:
        fail()
    except ToolError:
        raise RuntimeError("mine")

if "thread" in sys.argv:
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
else:
    use()
"""


@pytest.mark.parametrize("place", ["main", "thread"])
def test_python_prints_an_error_that_nothing_catches_with_a_mask(place):
    """Python before 3.13 prints it without asking for its attributes."""
    ended = subprocess.run([sys.executable, "-c", _UNCAUGHT, place], capture_output=True, text=True)
    assert "password=***" in ended.stderr and PASSWORD not in ended.stderr
    assert ended.stderr.count("Traceback") == 3 and "direct cause" in ended.stderr


def test_a_step_that_fails_stores_no_credential():
    @dg.asset
    def broken() -> None:
        with not_retried(ValueError):
            raise ValueError(TEXT)

    @dg.asset
    def tool() -> None:
        with raised_as(ToolError, "it fails", ValueError):
            raise ValueError(TEXT)

    with dg.DagsterInstance.ephemeral() as instance:
        result = dg.materialize([broken, tool], instance=instance, raise_on_error=False)
        events = [event.to_json() for event in instance.all_logs(result.run_id)]
    assert sum("password=***" in event for event in events) >= 2 and not [
        event for event in events if PASSWORD in event
    ]


def _fail(**options: object) -> Path:
    raise ValueError(TEXT)


def test_what_a_log_a_tool_or_a_report_says_is_quoted_with_a_mask(tmp_path):
    log = tmp_path / "server.log"
    log.write_text(f"starts\n{TEXT}\n")
    quotes = [tail(log), Inaccessible(TEXT).reason, Faulty(TEXT).reason, saved_report("tool", _fail)["tool/report"]]
    assert all(PASSWORD not in quote and "password=***" in quote for quote in quotes)
