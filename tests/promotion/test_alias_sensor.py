"""The sensor of an alias starts one run for each move, however it was made, and none for the past."""

import json
from typing import Any

import dagster as dg
import pytest
from dagster.components.testing import create_defs_folder_sandbox

from dagster_mlops.errors import HistoryError, TrackingError
from dagster_mlops.mlflow import MlflowResource
from dagster_mlops.promotion import PromotionComponent, alias_sensor
from dagster_mlops.promotion.history.entry import PROMOTION
from dagster_mlops.promotion.history.log import History
from tests.support import known_warnings
from tests.support.promotions import MODEL, Promotions, promoted

pytestmark = [*known_warnings.MLFLOW, *known_warnings.DAGSTER_BETA]


@dg.asset
def deployment() -> None: ...


SENSOR = alias_sensor(registered_model_name=MODEL, asset_selection=["deployment"])
DEFINITIONS = dg.Definitions(assets=[deployment], sensors=[SENSOR], resources={"mlflow": MlflowResource()})


def evaluate(resource: MlflowResource, cursor: str | None) -> Any:
    """What the sensor answers to Dagster's daemon."""
    with dg.build_sensor_context(cursor=cursor, definitions=DEFINITIONS, resources={"mlflow": resource}) as context:
        return SENSOR.evaluate_tick(context)


class Ticks:
    """The ticks of the sensor, each with the cursor of the one before, as Dagster's daemon makes them."""

    def __init__(self, world: Promotions) -> None:
        self.world, self.cursor, self.keys = world, None, set[str]()
        self.skipped: str | None = ""

    def tick(self) -> list[tuple[str, str]]:
        """The versions that new runs are for, with the kind of their move."""
        data = evaluate(self.world.resource, self.cursor)
        self.cursor, self.skipped = data.cursor, data.skip_message
        runs = [run for run in data.run_requests or () if run.run_key not in self.keys]
        assert len(runs) == len(data.run_requests or ()), "a key twice: Dagster would start no run for it"
        self.keys |= {str(run.run_key) for run in runs}
        assert all(run.tags["dagster_mlops/model"] == MODEL for run in runs)
        return [(run.tags["dagster_mlops/version"], run.tags["dagster_mlops/kind"]) for run in runs]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return promoted(tmp_path_factory.mktemp("template"), 0.70, 0.75)


@pytest.fixture
def world(template):
    yield template
    template.reset()


@pytest.fixture
def ticks(world):
    """Ticks of a sensor that has seen the present."""
    ticks = Ticks(world)
    assert ticks.tick() == [] and "earlier moves start no runs" in str(ticks.skipped)
    return ticks


def roll_back(world, *arguments):
    return world.json("rollback", MODEL, "--reason", "late orders", *arguments)


def test_each_entry_starts_one_run(world, ticks):
    assert ticks.tick() == [] and "is on version 2" in str(ticks.skipped)
    roll_back(world)
    assert ticks.tick() == [("1", "rollback")]
    world.promote("2")  # refused
    roll_back(world, "--lift", "2")
    assert ticks.tick() == []
    world.promote("2")  # the same version again is another move
    world.promote(world.train(0.8))
    assert ticks.tick() == [("2", "promotion"), ("3", "promotion")]
    assert ticks.tick() == []


def test_a_move_by_hand_starts_one_run_before_or_after_it_is_written_down(world, ticks):
    world.client.set_registered_model_alias(MODEL, "champion", "1")
    assert ticks.tick() == [("1", "by hand")]
    assert ticks.tick() == []
    world.client.set_registered_model_alias(MODEL, "champion", "2")
    assert ticks.tick() == [("2", "by hand")]
    world.client.set_registered_model_alias(MODEL, "champion", "1")
    assert ticks.tick() == [("1", "by hand")]
    world.promote(world.train(0.8))  # writes both the move by hand and its own
    assert ticks.tick() == [("3", "promotion")]
    world.client.set_registered_model_alias(MODEL, "champion", "1")
    world.promote("1")
    assert ticks.tick() == [("1", "by hand")]
    world.client.delete_registered_model_alias(MODEL, "champion")
    assert ticks.tick() == [("none", "by hand")]


def test_a_promotion_that_was_killed_starts_a_run_when_it_has_moved_the_alias(world, ticks):
    version = world.train(0.8)
    with world.resource.models() as models:
        history = History(models, models, MODEL)
        history.append(PROMOTION, "champion", "2", version, by="ann", why="better", facts={})
    assert ticks.tick() == [] and ticks.tick() == []
    world.promote(version)  # completes it
    assert ticks.tick() == [(version, "promotion")]
    later = world.train(0.9)
    with world.resource.models() as models:
        history = History(models, models, MODEL)
        history.append(PROMOTION, "champion", version, later, by="ann", why="better", facts={})
    world.client.set_registered_model_alias(MODEL, "champion", later)  # and dies before the head
    assert ticks.tick() == [(later, "promotion")] and ticks.tick() == []
    world.promote(later)
    assert ticks.tick() == []


@pytest.mark.thorough
def test_a_model_without_versions_waits_for_its_first_promotion(tmp_path):
    world = Promotions(tmp_path / "new")
    ticks = Ticks(world)
    assert ticks.tick() == [] and "version none" in str(ticks.skipped)
    world.promote(world.train(0.7))
    assert ticks.tick() == [("1", "promotion")]


def test_what_is_wrong_ends_the_tick_and_leaves_the_cursor(world, ticks):
    cursor = json.dumps({**json.loads(str(ticks.cursor)), "entries": 9})
    with pytest.raises(HistoryError, match="history restore"):
        evaluate(world.resource, cursor)
    for text in ("7", "{}", "[1]", "null", '{"entries": "2", "version": 1}', '{"entries": 2, "version": "2", "of": 9}'):
        with pytest.raises(HistoryError, match="is not a position of this sensor"):
            evaluate(world.resource, text)
    away = MlflowResource(tracking_uri="http://127.0.0.1:9", connect_timeout=1)
    with pytest.raises(TrackingError, match=r"127\.0\.0\.1:9"):
        evaluate(away, ticks.cursor)
    with pytest.raises(HistoryError, match="nothing to run"):
        alias_sensor(registered_model_name=MODEL)


def test_a_component_makes_the_sensor():
    attributes = {"candidate": "delay_model", "registered_model_name": MODEL, "metric": "auc"}
    document = {
        "type": "dagster_mlops.mlflow.PromotionComponent",
        "attributes": {**attributes, "after_move": ["serving/deployment"], "minimum_interval_seconds": 5},
    }
    others = dg.Definitions(assets=[dg.AssetSpec(["serving", "deployment"])], resources={"mlflow": MlflowResource()})
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(component_cls=PromotionComponent, defs_yaml_contents=document)
        with sandbox.load_component_and_build_defs(path) as (_, built):
            [sensor] = list(dg.Definitions.merge(built, others).sensors or ())
    assert (sensor.name, sensor.minimum_interval_seconds) == ("champion_after_move", 5)
    assert "serving/deployment" in str(sensor.asset_selection)
