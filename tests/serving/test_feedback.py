"""Feedback: each prediction of a log once, with its label once that has arrived, also across kills and rotations."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from dagster_mlops.core.files import write_atomically
from dagster_mlops.serving import PredictionLog, feedback_asset
from dagster_mlops.serving.feedback import logged_rows
from dagster_mlops.serving.runtime.log.rotation import rotate
from tests.support import known_warnings
from tests.support.modes import readable_by_others

pytestmark = [*known_warnings.DAGSTER_BETA]
TODAY = f"{datetime.now(UTC):%Y-%m-%d}"


class World:
    def __init__(self, root: Path, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.root, self.log = root, root / "serving" / "predictions"
        self.arrivals = self.labels()

    def predict(self, *flights: Any, deployment: str = "d/1", version: str = "1", close: bool = True) -> None:
        log = PredictionLog(self.log, deployment=deployment, model_name="delay", model_version=version, rotate=False)
        ids = [f"r-{flight}" for flight in flights]
        log.write(inputs=[{"flight": flight} for flight in flights], outputs=[0.5] * len(flights), request_ids=ids)
        if close:
            log.close()

    @staticmethod
    def labels(*rows: tuple[Any, bool]) -> pd.DataFrame:
        frame = pd.DataFrame(rows, columns=pd.Index(["flight", "late"]))
        return frame.assign(landed=pd.Series([datetime.now(UTC)] * len(rows), dtype="datetime64[ns, UTC]"))

    def arrive(self, *rows: tuple[Any, bool]) -> None:
        self.arrivals = pd.concat([self.arrivals, self.labels(*rows)], ignore_index=True)

    def run(self, **options: Any) -> tuple[pd.DataFrame, dict[str, Any]]:
        @dg.asset
        def arrivals() -> pd.DataFrame:
            return self.arrivals

        partition = options.pop("partition", None)
        arguments: Any = {"label": "late", "time": "landed", "key": "flight", **options}
        feedback = feedback_asset(prediction_log=self.log, labels=arrivals, **arguments)
        result = dg.materialize([arrivals, feedback], instance=self.instance, partition_key=partition)
        [event] = result.asset_materializations_for_node("feedback")
        metadata = {name.removeprefix("serving/"): value.value for name, value in event.metadata.items()}
        return result.output_for_node("feedback"), metadata


@pytest.fixture
def world(tmp_path) -> Iterator[World]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield World(tmp_path, instance)


def test_a_prediction_gets_its_label_in_the_run_after_it_has_arrived(world):
    world.predict("a", "b")
    frame, metadata = world.run()
    assert frame.late.isna().all() and metadata["new_predictions"] == 2 and metadata["awaited"] == 2
    world.arrive(("a", True))
    world.predict("c", version="2")
    frame, metadata = world.run()
    assert frame.set_index("flight").late.dropna().to_dict() == {"a": True} and len(frame) == 3
    assert metadata["new_predictions"] == 1 and metadata["labelled_share"] == pytest.approx(1 / 3)
    assert 0 < metadata["delay_p50"] == metadata["delay_max"] < 60
    assert [row.data for row in metadata["labels_by_version"].records] == [
        {"model": "delay/1", "predictions": 2, "labelled": 1}, {"model": "delay/2", "predictions": 1, "labelled": 0},
    ]  # fmt: skip
    assert readable_by_others(world.root / "serving") == []


def test_a_run_once_more_and_a_rotation_between_change_nothing(world):
    world.predict("a", "b", 3, 2**70, "a")
    world.arrive(("a", True))
    first, before = world.run()
    second, after = world.run()
    pd.testing.assert_frame_equal(first, second)
    rotate(world.log)
    assert not list(world.log.glob("*.jsonl"))
    third, _ = world.run()
    pd.testing.assert_frame_equal(first, third)
    assert (before["new_predictions"], after["new_predictions"]) == (5, 0)
    assert third.flight.tolist().count("a") == 2 and 2**70 in third.flight.tolist()


@pytest.mark.parametrize("place", [pytest.param("before", marks=pytest.mark.thorough), "after"])
def test_a_kill_around_the_write_of_the_cursor_loses_and_repeats_no_row(world, monkeypatch, place):
    world.predict("a")
    world.run()
    world.predict("b")
    write = write_atomically

    def killed(*arguments: Any, **options: Any) -> None:
        if place == "after":
            write(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(logged_rows, "write_atomically", killed)
        logged_rows.LoggedRows(world.log, world.log.parent / "feedback" / "feedback").read()
    frame, _ = world.run()
    assert sorted(frame.flight) == ["a", "b"]


@pytest.mark.thorough
def test_what_was_read_stays_when_the_log_is_removed_until_it_is_too_old(world):
    world.predict("a")
    world.run()
    for file in world.log.glob("*"):
        file.unlink()
    world.predict("b")
    frame, _ = world.run()
    assert sorted(frame.flight) == ["a", "b"]
    frame, metadata = world.run(keep=timedelta(microseconds=1))
    assert frame.empty and metadata["labelled"] == 0


@pytest.mark.thorough
def test_other_options_begin_anew_and_one_deployment_may_be_chosen(world):
    for number in range(3):
        world.predict(number, deployment=f"d/{number}")
    frame, _ = world.run()
    assert len(frame) == 3
    frame, metadata = world.run(deployment="d/1", columns=[])
    assert frame.flight.tolist() == [1] and "trace_id" not in frame and metadata["new_predictions"] == 1


@pytest.mark.thorough
def test_rows_of_others_beyond_one_step_along_the_log_are_passed(world, monkeypatch):
    monkeypatch.setattr(logged_rows, "_MOST", 2)
    world.predict(*range(5), deployment="d/0")
    world.predict("mine", deployment="d/1")
    world.predict(*range(5), deployment="d/0")
    frame, _ = world.run(deployment="d/1")
    assert frame.flight.tolist() == ["mine"]


def test_a_partition_has_the_predictions_of_its_window(world):
    days = dg.DailyPartitionsDefinition("2026-01-01", end_offset=1)
    world.predict("a", "b")
    world.arrive(("b", False))
    frame, metadata = world.run(partitions_def=days, partition=TODAY)
    assert sorted(frame.flight) == ["a", "b"] and metadata["labelled"] == 1 and "new_predictions" not in metadata
    frame, metadata = world.run(partitions_def=days, partition="2026-01-01")
    assert frame.empty and metadata["labelled"] == 0 and "labelled_share" not in metadata
    assert not (world.root / "serving" / "feedback").exists()


@pytest.mark.thorough
def test_an_empty_log_and_labels_too_late_are_counted(world):
    frame, metadata = world.run()
    assert frame.empty and metadata["labelled"] == 0
    world.predict("a")
    frame, metadata = world.run(within=timedelta(microseconds=1))
    assert metadata["never_labelled"] == 1 and metadata["awaited"] == 0


@pytest.mark.thorough
def test_losses_of_the_log_are_counted(world, monkeypatch):
    world.predict("a")
    text = f'{{"rows":7,"since":"{TODAY}T00:00:00+00:00","until":"{TODAY}T00:00:01+00:00","deployment":"d/1"}}\n'
    (world.log / f"{TODAY}-1.losses").write_text(text)
    assert world.run()[1]["lost_predictions"] == 7
    assert world.run(deployment="d/2")[1]["lost_predictions"] == 0
    days = dg.DailyPartitionsDefinition("2026-01-01", end_offset=1)
    assert world.run(partitions_def=days, partition="2026-01-02")[1]["lost_predictions"] == 0


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"key": "tail"}, "'tail'"),
        ({"columns": ["wind"]}, "no row has 'wind'"),
        ({"label": "early"}, "no column 'early'"),
    ],
)
def test_a_misspelt_column_is_named(world, options, reason):
    world.predict("a")
    world.arrive(("a", True))
    with pytest.raises(dg.Failure, match=reason):
        world.run(**options)


@pytest.mark.thorough
def test_keys_of_two_types_are_an_error(world):
    world.predict("7")
    world.arrive((7, True))
    with pytest.raises(dg.Failure, match="'flight' is"):
        world.run()


@pytest.mark.parametrize(
    "options",
    [
        {"take": "best"},
        {"within": timedelta(0)},
        {"partitions_def": dg.StaticPartitionsDefinition(["a"])},
        {"partitions_def": dg.DailyPartitionsDefinition("2026-01-01"), "keep": timedelta(days=1)},
    ],
)
def test_options_without_a_meaning_are_refused_when_definitions_load(options):
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="feedback_asset 'feedback': "):
        feedback_asset(prediction_log=os.devnull, labels="arrivals", label="late", time="landed", **options)
