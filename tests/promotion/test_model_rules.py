"""The rules about the candidate's files, its time and its data, on models that MLflow stores."""

import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.models import ModelSignature, infer_signature
from mlflow.sklearn import save_model
from mlflow.types import ColSpec, DataType, Schema
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from dagster_mlops.errors import EvaluationError
from dagster_mlops.evaluation import calibration_error
from dagster_mlops.mlflow import AtLeast, CompatibleSignature, FreshData, ModelSize, PredictionTime
from dagster_mlops.promotion import Case
from dagster_mlops.promotion.gate import Gate
from dagster_mlops.provenance import Dataset, ModelVersion
from dagster_mlops.tools import StoredModel
from tests.support import known_warnings

pytestmark = [*known_warnings.MLFLOW, *known_warnings.DAGSTER_BETA]


def stored(folder: Path, signature: ModelSignature | None, *, kilobytes: int = 0) -> Path:
    """The folder of a model with this signature."""
    folder.mkdir()
    described = {"flavors": {}, **({"signature": signature.to_dict()} if signature else {})}
    (folder / "MLmodel").write_text(yaml.safe_dump(described))
    (folder / "weights.bin").write_bytes(b"0" * 1000 * kilobytes)
    return folder


def inputs(**columns: str) -> ModelSignature:
    """A signature with these columns; a type that ends in ? is that of an optional one."""
    specs = [ColSpec(DataType[kind.rstrip("?")], name, required="?" not in kind) for name, kind in columns.items()]
    return ModelSignature(inputs=Schema(specs))  # pyright: ignore[reportArgumentType]


TODAY = inputs(hour="double", carrier="string", stops="integer", wind="double?")
TENSOR = infer_signature(np.zeros((3, 4)), [1.0])


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        (TODAY, TODAY, ""),
        (TODAY, inputs(hour="double"), ""),
        (TODAY, inputs(hour="double?", carrier="string", stops="long", wind="double?", rain="double?"), ""),
        (TODAY, inputs(hour="double", stops="double"), ""),
        (TODAY, inputs(hour="double", rain="double"), "'rain' is new and required"),
        (TODAY, inputs(hour="string"), "'hour' was double and is string"),
        (TODAY, inputs(hour="float", wind="double"), "'hour' was double and is float; 'wind' was optional and is"),
        (TENSOR, TENSOR, ""),
        (TENSOR, infer_signature(np.zeros((3, 5)), [1.0]), "is {\"type\": \"tensor\""),
        (None, TODAY, "version 1 of 'delay' has no signature"),
        (TODAY, None, "version 2 of 'delay' has no signature"),
    ],
)  # fmt: skip
def test_inputs_that_the_champion_gets_still_work(tmp_path, before, after, why):
    folders = {"1": stored(tmp_path / "before", before), "2": stored(tmp_path / "after", after)}
    champion, candidate = (ModelVersion(name="delay", version=version, tracking_uri="") for version in folders)

    def fetch(version: ModelVersion) -> StoredModel:
        return StoredModel.read(folders[version.version], version)

    registry: Any = None  # which this rule does not ask
    verdict = Gate([CompatibleSignature()], Case(registry, candidate, fetch=fetch)).judge(champion)
    [row] = verdict.rows
    assert (row.verdict, why in row.why) == ("fails" if why else "holds", True), row
    assert "move the alias by hand" in row.why or not why
    assert Gate([CompatibleSignature()], Case(registry, candidate, fetch=fetch)).judge(None).promotes, "the first one"


def test_the_size_is_that_of_all_files_and_missing_files_fail(world, tmp_path):
    world.crown(world.train(auc=0.7))
    world.train(source=stored(tmp_path / "model", TODAY, kilobytes=500))
    small, large = world.decide(ModelSize(max_megabytes=0.4), ModelSize(max_megabytes=0.6))
    assert (small["verdict"], large["verdict"]) == ("fails", "holds") and large["candidate"] == "0.5 MB"
    assert "and at most 0.4 MB is allowed" in small["why"]
    world.train(auc=0.7)
    gone, bound = world.decide(ModelSize(max_megabytes=1), AtLeast(metric="auc", limit=0.5))
    assert (gone["verdict"], bound["verdict"]) == ("fails", "holds") and "cannot be read" in gone["why"]


@pytest.mark.thorough
def test_the_time_of_a_row_is_measured_on_the_example_of_the_model(world, tmp_path):
    rows: Any = pd.DataFrame({"hour": [0.0, 1.0, 22.0, 23.0]})
    classifier = LogisticRegression().fit(rows, [0, 0, 1, 1])
    how: dict[str, Any] = {
        "signature": infer_signature(rows, [0.5]),
        "pip_requirements": [],
        "serialization_format": "skops",
    }
    save_model(classifier, str(tmp_path / "plain"), **how)
    save_model(classifier, str(tmp_path / "model"), input_example=rows.head(2), **how)
    world.crown(world.train())
    world.train(source=tmp_path / "plain")
    [row] = world.decide(PredictionTime(max_milliseconds=1e9))
    assert row["verdict"] == "fails" and "Log models with input_example=rows.head(3)" in row["why"]
    world.train(source=tmp_path / "model")
    slow, fast = world.decide(PredictionTime(max_milliseconds=1e9), PredictionTime(max_milliseconds=1e-9))
    assert (slow["verdict"], fast["verdict"]) == ("holds", "fails")
    assert slow["candidate"].endswith(" ms") and "95 of 100 calls of one row took at most" in fast["why"]


def made(world: Any, asset: str, md5: str = "", *, observed: bool = False) -> None:
    record = Dataset(path=f"{asset}.parquet", md5=md5 * 32, repo="/data") if md5 else None
    kind = dg.AssetObservation if observed else dg.AssetMaterialization
    world.instance.report_runless_asset_event(kind(asset, metadata=record.to_metadata() if record else {}))


def test_data_is_as_old_as_the_version_that_the_candidate_was_trained_on(world, monkeypatch):
    def later(hours: float) -> None:
        clock = SimpleNamespace(time=lambda: time.time() + 3600 * hours)
        monkeypatch.setattr("dagster_mlops.promotion.rules.fresh_data.time", clock)

    def decide(asset: str) -> tuple[str, str]:
        world.crown("1")  # in case the decision before has moved it
        [row] = world.decide(FreshData(assets=[asset], max_age=timedelta(hours=2)))
        return row["verdict"], row["why"]

    world.crown(world.train())
    made(world, "rows", "a")
    made(world, "weather")
    made(world, "vendor", "c", observed=True)
    world.train(datasets={"rows.parquet": "a" * 32, "vendor.parquet": "c" * 32})
    for asset in ("rows", "weather", "vendor"):
        later(1)
        assert decide(asset)[0] == "holds"
        later(3)
        verdict, why = decide(asset)
        assert verdict == "fails" and f"at most 2:00:00 is allowed. Materialize {asset}, then train again" in why
    made(world, "airports")
    verdict, why = decide("airports")
    assert verdict == "fails" and "airports was not materialized before the candidate" in why
    verdict, why = decide("row")
    assert verdict == "fails" and "No asset has the key row" in why
    later(0)
    world.train(datasets={"rows.parquet": "b" * 32})
    verdict, why = decide("rows")
    assert verdict == "fails" and "rows.parquet@bbbbbbbbbbbb, which it was trained on, is not on record for rows" in why


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 0.999)), min_size=1, max_size=60))
def test_the_calibration_error_is_the_gap_of_the_calibration_curve(rows):
    labels, said = np.array([row[0] for row in rows], dtype=float), np.array([row[1] for row in rows])
    bins = (said * 10).astype(int)
    gaps = [abs((labels - said)[bins == each].mean()) * (bins == each).mean() for each in set(bins.tolist())]
    assert calibration_error(labels, said) == pytest.approx(sum(gaps))
    if 0 < labels.sum() < len(labels) and not set(np.round(said * 10, 9) % 1) & {0.0}:
        shares, means = calibration_curve(labels, said, n_bins=10)
        weights = [(bins == each).mean() for each in sorted(set(bins.tolist()))]
        assert calibration_error(labels, said) == pytest.approx(float(abs(shares - means) @ weights))


def test_the_calibration_of_several_classes_is_that_of_the_most_probable_one():
    labels, shares = np.array([0, 1, 2]), np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.7, 0.2, 0.1]])
    assert calibration_error(labels, shares) == pytest.approx((0.1 + 0.2 + 0.7) / 3)
    with pytest.raises(EvaluationError, match="takes probabilities"):
        calibration_error(np.array([0, 1]), np.array([-3.0, 2.0]))
