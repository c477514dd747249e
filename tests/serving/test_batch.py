"""Batches: the promoted version scores partitions of a table, once, typed, and traceable row by row."""

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import mlflow
import numpy as np
import pandas as pd
import pytest
from dagster.components.testing import create_defs_folder_sandbox
from mlflow.models import infer_signature
from sklearn.linear_model import LogisticRegression

from dagster_mlops.lineage import EventLog, trace
from dagster_mlops.lineage.chain.names import find_ref
from dagster_mlops.mlflow import MlflowResource
from dagster_mlops.provenance import ModelVersion, Prediction, PredictionBatch, Ref
from dagster_mlops.serving import BatchPredictionsComponent, LogRules, PredictionLog, batch_predictions_asset
from dagster_mlops.serving.batch import log as batch_log
from tests.support import known_warnings

pytestmark = [
    *known_warnings.MLFLOW,
    *known_warnings.MLFLOW_HINTS,
    *known_warnings.DAGSTER_BETA,
    *known_warnings.DEPRECATED,
]
DAYS = dg.StaticPartitionsDefinition(["2026-03-01", "2026-03-02"])


def table(day: str, rows: int = 50) -> pd.DataFrame:
    random = np.random.default_rng(int(day[-1]))
    hours = random.integers(0, 24, rows)
    return pd.DataFrame({"flight": range(rows), "hour": hours, "wind": random.normal(10, 3, rows), "note": "x"})


class World:
    """A registry with two versions of ``delay``, of which one is promoted, and rows for each day."""

    def __init__(self, root: Path) -> None:
        self.root, self.uri, self.champion = root, f"sqlite:///{root}/mlflow.db", "1"
        self.resource = MlflowResource(tracking_uri=self.uri, allow_pickle=True)
        (root / "dagster").mkdir()
        self.instance = dg.DagsterInstance.local_temp(str(root / "dagster"))
        self.change: Any = lambda frame: frame
        mlflow.set_tracking_uri(self.uri)
        experiment = mlflow.create_experiment("delay", artifact_location=f"file://{root}/artifacts")
        self.models = [self._train(experiment, seed) for seed in (1, 2)]
        mlflow.set_tracking_uri(None)  # pyright: ignore[reportArgumentType] - an address would stay in the environment

    def _train(self, experiment: str, seed: int) -> tuple[str, Any]:
        features = table(f"0{seed}")[["hour", "wind"]]
        model = LogisticRegression().fit(features, features.wind > 9 + seed)
        with mlflow.start_run(experiment_id=experiment) as run:
            info = importlib.import_module("mlflow.sklearn").log_model(
                model, name="model", signature=infer_signature(features, model.predict_proba(features)),
                pip_requirements=[], serialization_format="cloudpickle", pyfunc_predict_fn="predict_proba",
            )  # fmt: skip
        mlflow.register_model(info.model_uri, "delay")
        return run.info.run_id, model

    def score(self, day: str = "2026-03-01", **options: Any) -> dg.ExecuteInProcessResult:
        @dg.asset
        def champion() -> dg.MaterializeResult:
            run, _ = self.models[int(self.champion) - 1]
            record = ModelVersion(name="delay", version=self.champion, run_id=run, tracking_uri=self.uri)
            return dg.MaterializeResult(metadata=record.to_metadata())

        @dg.asset(partitions_def=DAYS)
        def flights(context: dg.AssetExecutionContext) -> pd.DataFrame:
            return self.change(table(context.partition_key))

        arguments: Any = {"key": "flight", "columns": ["flight"], "partitions_def": DAYS, "chunk_rows": 20, **options}
        scores = batch_predictions_asset(name="scores", promoted=champion, rows=flights, **arguments)
        storage = dg.FilesystemIOManager(base_dir=str(self.root / "storage"))
        return dg.materialize(
            [champion, flights, scores], partition_key=day, instance=self.instance,
            resources={"mlflow": self.resource, "io_manager": storage},
        )  # fmt: skip

    def frame(self, day: str = "2026-03-01", **options: Any) -> pd.DataFrame:
        return self.score(day, **options).output_for_node("scores")

    def record(self) -> PredictionBatch:
        event: Any = self.instance.get_latest_materialization_event(dg.AssetKey("scores"))
        record = PredictionBatch.from_metadata(event.asset_materialization.metadata)
        assert record
        return record

    def expected(self, day: str = "2026-03-01") -> list[float]:
        _, model = self.models[int(self.champion) - 1]
        return model.predict_proba(table(day)[["hour", "wind"]])[:, 1].tolist()


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("batch"))


@pytest.fixture
def world(built, tmp_path) -> Iterator[World]:
    built.champion, built.change = "1", lambda frame: frame
    built.log = tmp_path / "log"
    yield built


def test_a_partition_is_scored_by_the_promoted_version(world):
    result = world.score()
    frame = result.output_for_node("scores")
    assert list(frame.columns) == ["request_id", "flight", "prediction", "model_name", "model_version"]
    assert frame.prediction.tolist() == world.expected() and set(frame.model_version) == {"1"}
    assert frame.request_id.tolist() == [f"scores/2026-03-01/{flight}" for flight in range(50)]
    record = world.record()
    assert (record.rows, record.model_version, record.dagster_partition) == (50, "1", "2026-03-01")


def test_the_same_rows_and_version_again_are_the_same_batch_and_another_version_is_another(world):
    first, before = world.frame(), world.record()
    second, after = world.frame(), world.record()
    pd.testing.assert_frame_equal(first, second)
    assert before.ref == after.ref
    world.champion = "2"
    other = world.frame()
    assert set(other.model_version) == {"2"} and other.request_id.tolist() == first.request_id.tolist()
    assert world.record().ref != before.ref and other.prediction.tolist() == world.expected()
    old = trace(before.ref, instance=world.instance)
    assert [version.version for version in old.find(ModelVersion)] == ["1"], "the batch before keeps its version"


def test_the_log_has_each_row_once_also_after_a_kill_between_chunks(world, monkeypatch):
    options = {"prediction_log": world.log}
    append = batch_log.BatchLog.append

    def killed(self: Any, ids: Any, *columns: Any) -> None:
        if "scores/2026-03-01/25" in ids:
            raise OSError("the disk is gone")
        append(self, ids, *columns)

    with monkeypatch.context() as patch:
        patch.setattr(batch_log.BatchLog, "append", killed)
        with pytest.raises(OSError, match="the disk is gone"):
            world.score(**options)
    assert len(PredictionLog.read(world.log)) == 20
    frame = world.frame(**options)
    world.frame(**options)
    logged = PredictionLog.read(world.log).set_index("request_id")
    assert logged.index.is_unique and set(logged.index) == set(frame.request_id)
    assert logged.output.loc[frame.request_id].tolist() == frame.prediction.tolist()
    assert logged.hour.loc[frame.request_id].tolist() == table("2026-03-01").hour.tolist()
    world.champion = "2"
    world.score(**options)
    assert PredictionLog.read(world.log).groupby("model_version").size().to_dict() == {"1": 50, "2": 50}


@pytest.mark.parametrize("logged", [True, pytest.param(False, marks=pytest.mark.thorough)])
def test_a_prediction_of_a_batch_is_traced_to_its_model_and_rows(world, logged):
    day = "2026-03-01" if logged else "2026-03-02"
    world.score(day, prediction_log=world.log if logged else None)
    events = EventLog(world.instance)
    ref = find_ref(f"scores/{day}/7", events=events)
    assert ref.role == ("prediction" if logged else "prediction_batch")
    chain = trace(ref, instance=world.instance)
    roles: dict[str, Any] = {link.ref.role: link for link in chain.walk()}
    assert roles["prediction_batch"].bucket == "accessible" and roles["prediction_batch"].record.rows == 50
    assert roles["model_version"].ref == Ref("mlflow", "model_version", "delay/1", at=world.uri)
    assert roles["asset"].ref.id == "flights", "whose IO manager keeps no versions"
    if logged:
        [prediction] = chain.find(Prediction)
        assert prediction.inputs["wind"] == table(day).wind[7] and prediction.dagster_partition == day


@pytest.mark.thorough
def test_without_a_key_ids_follow_from_the_content_in_any_order(world):
    world.change = lambda frame: pd.concat([frame, frame.head(3)])
    frame = world.frame(key=())
    assert frame.request_id.is_unique and frame.request_id.str.endswith("-1").sum() == 3
    world.change = lambda frame: pd.concat([frame, frame.head(3)]).iloc[::-1]
    turned = world.frame(key=())
    pd.testing.assert_series_equal(
        frame.set_index("request_id").prediction.sort_index(), turned.set_index("request_id").prediction.sort_index()
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: f.assign(hour=f.hour + 0.5), r"Expected `int`, got `float` - at `\$\[\d\].hour`"),
        (lambda f: f.assign(flight=1), "49 of 50 rows have no flight of their own"),
        *(
            pytest.param(*case, marks=pytest.mark.thorough)
            for case in (
                (
                    lambda f: f.assign(hour=f.hour.astype(object).where(f.hour < 0, 2**70)),
                    "from number 0 on do not fit",
                ),
                (lambda f: f.assign(wind=f.wind.astype(str)), "Expected `float.*`, got `str`"),
                (lambda f: f.drop(columns="wind"), "lack feature.s. wind"),
                (lambda f: f.assign(flight=f.flight.where(f.flight > 0)), "1 of 50 rows"),
                (lambda f: f.assign(wind=math.nan), "refuses rows: ValueError"),
                (lambda f: f.drop(columns="flight"), "no column 'flight'"),
            )
        ),
    ],
)
def test_rows_that_do_not_fit_are_refused_and_nothing_is_stored(world, change, reason):
    world.change = change
    with pytest.raises(dg.Failure, match=reason):
        world.score()


@pytest.mark.thorough
def test_private_features_are_not_logged_and_a_share_is(world):
    rules = LogRules(private={"wind": "drop"}, share=0.5)
    world.score(prediction_log=world.log, log_rules=rules)
    logged = PredictionLog.read(world.log)
    assert "wind" not in logged.columns and 10 < len(logged) < 40
    world.score(prediction_log=world.log, log_rules=rules)
    assert len(PredictionLog.read(world.log)) == len(logged)


@pytest.mark.thorough
def test_a_batch_in_yaml_is_the_factorys():
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(
            component_cls=BatchPredictionsComponent,
            defs_yaml_contents={
                "type": "dagster_mlops.bentoml.BatchPredictionsComponent",
                "attributes": {
                    "promoted": "models/champion", "rows": "flights", "key": ["flight"], "group_name": "scores",
                    "partitions_def": {"every": "day", "start": "2026-03-01"},
                },
            },
        )  # fmt: skip
        with sandbox.load_component_and_build_defs(defs_path=path) as (_, defs):
            resources = {"mlflow": MlflowResource(tracking_uri="sqlite://")}
            beside = dg.Definitions(assets=[dg.AssetSpec("flights")], resources=resources)
            node = dg.Definitions.merge(defs, beside).resolve_asset_graph().get(dg.AssetKey("predictions"))
            assert node.parent_keys == {dg.AssetKey(["models", "champion"]), dg.AssetKey("flights")}
            assert isinstance(node.partitions_def, dg.DailyPartitionsDefinition) and node.group_name == "scores"
