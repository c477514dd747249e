"""The contracts of :mod:`dagster_mlops.tools`: of every tool, and of its capabilities."""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dagster_mlops.errors import DagsterMlopsError
from dagster_mlops.provenance import Accessible, Answer, Deleted, Faulty, Inaccessible, Ref
from dagster_mlops.testing.records import check_record
from dagster_mlops.tools import KeepsDatasets, KeepsRuns, Tool

_HOSTILE_IDS = ("", "@", "/", "x", "../../etc/passwd", "--help", "a\0b", "ü" * 300, "'; drop table runs; --")


def check_tool(tool: Any, *, name: str, present: Ref, absent: Ref, seconds: float = 30.0) -> None:
    """A tool answers for things that it has and for others, and never raises.

        check_tool(DvcTool(), name="dvc", present=stored.ref, absent=Ref("dvc", "dataset", "a@00", at=stored.repo))

    Args:
        tool: Tool to check.
        name: Name of its entry point.
        present: Ref of something that it has.
        absent: Ref of something of the same role, in the same place, that it never had.
        seconds: Time within which each answer has to come.

    Raises:
        AssertionError: It does not.
    """
    assert isinstance(tool, Tool), f"{tool!r} has no method resolve(ref)."

    def ask(ref: Ref) -> Answer:
        start = time.monotonic()
        try:
            answer = tool.resolve(ref)
        except Exception as error:
            raise AssertionError(f"resolve({ref!r}) raised {type(error).__name__}: {error}") from error
        assert isinstance(answer, Answer), f"resolve({ref!r}) returned {answer!r}, which is not an Answer."
        spent = time.monotonic() - start
        assert spent <= seconds, f"resolve({ref!r}) took {spent:.1f} s, and may take {seconds:g} s."
        if not isinstance(answer, Accessible):
            assert answer.reason, f"resolve({ref!r}) is {answer.bucket} without a reason."
        return answer

    answer = ask(present)
    assert isinstance(answer, Accessible), f"{present} is {answer.bucket}: {answer.reason}"
    record = answer.record
    assert record.tool == name, f"The record of {present} has the tool {record.tool!r} instead of {name!r}."
    assert record.ref == present, f"Asked for {present!r}, the tool answers with the record of {record.ref!r}."
    check_record(record)
    assert ask(present) == answer, f"Asked twice for {present}, the tool answers differently."
    answer = ask(absent)
    assert isinstance(answer, Deleted | Faulty), f"{absent} was never kept, and is {answer.bucket}."
    answer = ask(dataclasses.replace(present, at="/no/such/place"))
    assert isinstance(answer, Inaccessible), f"What is kept in a place that is not there is {answer.bucket}."
    strangers = [Ref(name, "poem", present.id, at=present.at)]
    strangers += [dataclasses.replace(present, id=text) for text in _HOSTILE_IDS if text != present.id]
    for ref in strangers:
        answer = ask(ref)
        assert not isinstance(answer, Accessible), f"{ref!r} was never kept, and is accessible."


def check_datasets(tool: Any, present: Ref) -> None:
    """A tool that :class:`.KeepsDatasets` returns any version, or raises a DagsterMlopsError.

    Args:
        tool: Tool to check.
        present: Ref of a dataset version that it keeps, whose id is ``path@hash``.

    Raises:
        AssertionError: It does not.
    """
    assert isinstance(tool, KeepsDatasets), f"{tool!r} has no method datasets(at)."
    path, _, md5 = present.id.rpartition("@")
    datasets = tool.datasets(present.at)
    local = Path(datasets.read_path(path, md5=md5))
    assert local.exists(), f"read_path({path!r}, md5={md5!r}) gave {local}, which is not there."
    if local.is_file():
        content = datasets.load(path, bytes, md5=md5)
        assert content == local.read_bytes(), f"load({path!r}, bytes) and read_path({path!r}) give other bytes."
    refuses(lambda: datasets.read_path(path, md5="0" * len(md5)), f"read_path({path!r}) of a version that never was")


def check_runs(tool: Any, present: Ref) -> None:
    """A tracker that :class:`.KeepsRuns` returns the run's files and model, or raises a DagsterMlopsError.

    Args:
        tool: Tool to check.
        present: Ref of a training run that it keeps, with a model.

    Raises:
        AssertionError: It does not.
    """
    assert isinstance(tool, KeepsRuns), f"{tool!r} lacks rerun, files, find_model or fetch_model."
    assert Path(tool.rerun).is_file(), f"The script that runs a training again is not there: {tool.rerun}"
    assert tool.files(present, "no such folder") == {}, "A folder that a run does not have holds files."
    problem = tool.find_model(present)
    assert problem is None, f"The run's model is {problem.bucket}: {problem.reason}"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(tool.fetch_model(present, Path(scratch)))
        assert folder.is_relative_to(scratch), f"The model was put into {folder}, not below {scratch}."
        assert (folder / "MLmodel").is_file(), f"{folder} is not an MLmodel folder."
        never = dataclasses.replace(present, id="0" * 32)
        assert tool.find_model(never) is not None, "A run that never was has a model."
        refuses(lambda: tool.fetch_model(never, Path(scratch)), "fetch_model of a run that never was")


def refuses(call: Callable[[], object], what: str, expected: type[Exception] = DagsterMlopsError) -> None:
    """Check that a call raises an error of the `expected` type."""
    try:
        result = call()
    except expected:
        return
    except Exception as error:
        raise AssertionError(
            f"{what} raised {type(error).__name__} instead of a {expected.__name__}: {error}"
        ) from error
    raise AssertionError(f"{what} gave {result!r} instead of raising a {expected.__name__}.")
