"""An asset that returns a model makes one version, whatever happens; the assets downstream get that version."""

import dataclasses
import importlib
import os
import pickle
import random
import shutil
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest
import yaml
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from dagster_mlops.core.model_loading import DIGEST, FORMAT, REGISTERED_DIGEST
from dagster_mlops.errors import ModelVersionError
from dagster_mlops.mlflow import MlflowResource, training_asset
from dagster_mlops.mlflow.io_manager import MODEL, PARTITION, mlflow_model_io_manager, registered_name
from dagster_mlops.mlflow.models.log import FittedModel, log_model
from dagster_mlops.mlflow.registry.models import find_version, load_version
from dagster_mlops.mlflow.registry.versions import logged_model_id
from dagster_mlops.mlflow.runs.lookup import RECORD
from dagster_mlops.provenance import ModelVersion, TrainingRun
from tests.support import known_warnings
from tests.support.mlflow_processes import run_at_once, run_until_killed

pytestmark = [pytest.mark.usefixtures("warm_tools"), *known_warnings.MLFLOW]

KILLS = int(os.environ.get("DAGSTER_MLOPS_KILLS", "1"))
ROWS = pd.DataFrame({"hour": [0.0, 1.0, 22.0, 23.0] * 5, "late": [0, 0, 1, 1] * 5})
MONTHS = dg.MultiPartitionsDefinition(
    {
        "month": dg.StaticPartitionsDefinition(["2013-01", "2013-02"]),
        "hub": dg.StaticPartitionsDefinition(["A/B", "C's"]),
    }
)


def fitted(trees: int = 4, **options) -> FittedModel:
    forest = RandomForestClassifier(trees, random_state=0).fit(ROWS[["hour"]], ROWS["late"])
    return FittedModel(forest, ROWS[["hour"]], metrics={"auc": 1.0}, params={"trees": trees}, options=options)


@dg.asset(key_prefix="flights", io_manager_key="models")
def delay() -> FittedModel:
    return fitted()


@dg.asset(ins={"delay": dg.AssetIn(["flights", "delay"])})
def said(delay: RandomForestClassifier) -> float:
    return float(delay.predict(ROWS[["hour"]]).mean())


@dg.asset(partitions_def=MONTHS, io_manager_key="models")
def monthly(context: dg.AssetExecutionContext) -> FittedModel:
    return fitted(trees_of(context.partition_key))


def trees_of(partition: str) -> int:
    return 1 + MONTHS.get_partition_keys().index(partition)


@dg.asset(partitions_def=MONTHS)
def judged(context: dg.AssetExecutionContext, monthly: ModelVersion) -> str:
    assert monthly.dagster_partition == context.partition_key
    return monthly.version


JUST_MADE = dg.SpecificPartitionsPartitionMapping(MONTHS.get_partition_keys()[:2])


@dg.asset(ins={"monthly": dg.AssetIn(partition_mapping=JUST_MADE)})
def some_months(monthly: dict[str, ModelVersion]) -> int:
    return len({record.version for record in monthly.values()})


@training_asset(registered_model_name="trained", name="trained", io_manager_key="models")
def trained() -> None:
    log_model(LogisticRegression().fit(ROWS[["hour"]], ROWS["late"]), ROWS[["hour"]])


RESOURCES = {
    "mlflow": MlflowResource(tracking_uri=dg.EnvVar("TEST_MLFLOW_URI"), experiment="delay"),
    "models": mlflow_model_io_manager,
}
WORLD = dg.Definitions(
    assets=[delay, monthly],
    jobs=[
        dg.define_asset_job("make", dg.AssetSelection.assets(delay), executor_def=dg.in_process_executor),
        dg.define_asset_job("make_month", dg.AssetSelection.assets(monthly), executor_def=dg.in_process_executor),
    ],
    resources=RESOURCES,
)


@pytest.fixture(autouse=True)
def resource(tmp_path, monkeypatch, empty_database):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    monkeypatch.setenv("TEST_MLFLOW_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return MlflowResource(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="delay")


@pytest.fixture
def instance(tmp_path):
    (tmp_path / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "home")) as made:
        yield made


def materialize(instance, *assets, **options):
    return dg.materialize(list(assets), instance=instance, resources=RESOURCES, **options)


def test_a_returned_model_becomes_a_version_and_comes_back_as_what_it_was(instance, resource):
    result = materialize(instance, delay, said)
    metadata = result.asset_materializations_for_node("flights__delay")[0].metadata
    record, run = ModelVersion.from_metadata(metadata), TrainingRun.from_metadata(metadata)
    assert record is not None and run is not None and run.seed is None
    assert (record.name, record.version, record.metrics) == ("flights.delay", "1", {"auc": 1.0})
    assert metadata["mlflow/format"].value == "skops" and metadata["mlflow/metric/auc"].value == 1.0
    assert result.output_for_node("said") == 0.5
    client = resource.client()
    assert client.get_run(run.run_id).data.params == {"trees": "4"}
    tags = client.get_model_version("flights.delay", "1").tags
    assert tags[FORMAT] == "skops" and tags[DIGEST] == metadata["mlflow/sha256"].value
    [loaded] = [event for event in result.all_events if event.event_type_value == "LOADED_INPUT"]
    data: Any = loaded.event_specific_data
    assert data.metadata["mlflow/loaded"].value == "flights.delay/1"
    [event] = result.asset_materializations_for_node("flights__delay")
    assert (event.tags or {})["dagster/data_version"] == "flights.delay/1"


def test_each_partition_is_a_version_and_downstream_gets_exactly_its_own(instance, resource):
    keys = MONTHS.get_partition_keys()[:2]
    for key in keys:
        materialize(instance, monthly, partition_key=key)
    # The newest version is of the last partition; an older one is asked for.
    result = materialize(instance, monthly, judged, selection=[judged], partition_key=keys[0])
    assert result.output_for_node("judged") == "1"
    assert materialize(instance, monthly, some_months, selection=[some_months]).output_for_node("some_months") == 2
    found = resource.client().search_model_versions(f"name='monthly' and tags.`{PARTITION}` = '{keys[1]}'")
    assert len(found) == 1


def test_models_of_several_partitions_come_by_partition(instance, resource):
    keys = MONTHS.get_partition_keys()[:2]
    for key in keys:
        materialize(instance, monthly, partition_key=key)

    @dg.asset(ins={"monthly": dg.AssetIn(partition_mapping=JUST_MADE)})
    def sizes(monthly: dict[str, RandomForestClassifier]) -> dict[str, int]:
        return {partition: model.n_estimators for partition, model in monthly.items()}

    result = materialize(instance, monthly, sizes, selection=[sizes])
    assert result.output_for_node("sizes") == {key: trees_of(key) for key in keys}


def test_the_first_partition_of_a_chain_begins_with_no_model(instance, resource):
    days = dg.DailyPartitionsDefinition("2013-01-01", end_date="2013-01-03")
    before = dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1)

    @dg.asset(partitions_def=days, io_manager_key="models", ins={"chain": dg.AssetIn(partition_mapping=before)})
    def chain(chain: RandomForestClassifier | None) -> FittedModel:
        return fitted(chain.n_estimators + 1 if chain else 1)

    for key in ("2013-01-01", "2013-01-02", "2013-01-01"):
        made = materialize(instance, chain, partition_key=key)
    # Again after the second: what it begins with is not the newest model of any partition.
    [event] = made.asset_materializations_for_node("chain")
    record = ModelVersion.from_metadata(event.metadata)
    assert record is not None and load_version(resource, record).model.n_estimators == 1


@pytest.mark.thorough
def test_partitions_made_by_processes_at_the_same_moment_do_not_mix(instance, resource):
    keys = list(MONTHS.get_partition_keys())
    environment = {"TEST_MLFLOW_URI": os.environ["TEST_MLFLOW_URI"]}
    assert run_at_once(instance, __file__, "make_month", environment, keys) == [0] * len(keys)
    client = resource.client()
    for key in keys:
        wanted = dg.AssetRecordsFilter(asset_key=monthly.key, asset_partitions=[key])
        [made] = instance.fetch_materializations(wanted, limit=2).records
        assert made.asset_materialization is not None
        record = ModelVersion.from_metadata(made.asset_materialization.metadata)
        assert record is not None and record.dagster_partition == key
        assert client.get_model_version("monthly", record.version).tags[PARTITION] == key
        assert load_version(resource, record).model.n_estimators == trees_of(key)
        assert client.get_run(record.run_id).data.params == {"trees": str(trees_of(key))}
    assert len(client.search_model_versions("name='monthly'")) == len(keys)


def test_a_notebook_loads_a_model_from_the_definitions(instance, resource):
    materialize(instance, delay)
    model = WORLD.load_asset_value(["flights", "delay"], instance=instance)
    assert isinstance(model, RandomForestClassifier)


def test_a_training_assets_model_is_loaded_by_the_same_io_manager(instance, resource):
    from mlflow.pyfunc import PyFuncModel  # which warns when it is imported

    @dg.asset
    def served(trained: PyFuncModel) -> int:
        return len(trained.predict(ROWS[["hour"]]))

    assert materialize(instance, trained, served).output_for_node("served") == len(ROWS)


def test_an_alias_in_the_metadata_names_the_version(instance, resource):
    for _ in range(2):
        materialize(instance, delay)
    resource.client().set_registered_model_alias("flights.delay", "champion", "1")
    champion = dg.AssetSpec("champion", metadata={MODEL: "flights.delay@champion"}).with_io_manager_key("models")

    @dg.asset
    def by_spec(champion: ModelVersion) -> str:
        return champion.version

    @dg.asset(ins={"champion": dg.AssetIn(metadata={MODEL: "flights.delay/2"})})
    def by_input(champion: ModelVersion) -> str:
        return champion.version

    result = materialize(instance, champion, by_spec, by_input)
    assert (result.output_for_node("by_spec"), result.output_for_node("by_input")) == ("1", "2")
    assert find_version(resource, "flights.delay").version == "2"
    for missing in ("flights.delay@gone", "flights.delay/9", "nothing"):
        with pytest.raises(ModelVersionError, match="name@alias"):
            find_version(resource, missing)


def test_a_pickle_is_loaded_only_where_it_is_allowed(instance, resource):
    @dg.asset(io_manager_key="models")
    def risky() -> FittedModel:
        return fitted(serialization="pickle")

    @dg.asset
    def reader(risky: RandomForestClassifier) -> int:
        return len(risky.estimators_)

    with pytest.raises(ModelVersionError, match=r"risky/1 is stored as cloudpickle.*set allow_pickle"):
        materialize(instance, risky, reader)
    allowed = {**RESOURCES, "models": mlflow_model_io_manager.configured({"allow_pickle": True})}
    assert dg.materialize([risky, reader], instance=instance, resources=allowed).output_for_node("reader") == 4


def folder_of(resource, name) -> Path:
    model_id = logged_model_id(resource.client().get_model_version(name, "1"))
    return Path(resource.client().get_logged_model(model_id).artifact_location.removeprefix("file://"))


def unsealed(resource, name) -> ModelVersion:
    """A version whose hash nobody knows, as of a model in another store that MLflow's own log_model has logged."""
    client, model_id = resource.client(), logged_model_id(resource.client().get_model_version(name, "1"))
    client.delete_logged_model_tag(model_id, REGISTERED_DIGEST)
    return dataclasses.replace(find_version(resource, name), sha256="")


def test_files_that_somebody_changed_are_not_loaded(instance, resource):
    materialize(instance, delay)
    record = find_version(resource, "flights.delay")
    file = folder_of(resource, "flights.delay") / "model.skops"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"!")
    with pytest.raises(ModelVersionError, match="someone changed them"):
        load_version(resource, record)
    file.write_bytes(content)
    assert load_version(resource, record).sha256
    file.unlink()
    with pytest.raises(ModelVersionError, match="someone changed them"):
        load_version(resource, record)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("MLmodel", lambda text: text.replace("predict_fn: predict", "predict_fn: predict_proba")),
        ("MLmodel", lambda text: text.replace('"double"', '"long"')),
        ("requirements.txt", lambda text: text.replace("scikit-learn==", "scikit-learn>=")),
    ],
    ids=["another answer", "another signature", "another package"],
)
def test_how_a_model_is_called_is_part_of_what_must_not_change(instance, resource, file, change):
    materialize(instance, delay)
    record = find_version(resource, "flights.delay")
    changed = folder_of(resource, "flights.delay") / file
    text = changed.read_text()
    assert change(text) != text
    changed.write_text(change(text))
    with pytest.raises(ModelVersionError, match="someone changed them"):
        load_version(resource, record, pyfunc=True)


def test_a_hash_that_was_removed_from_the_registry_is_in_the_records(instance, resource):
    result = materialize(instance, delay)
    [event] = result.asset_materializations_for_node("flights__delay")
    witness = ModelVersion.from_metadata(event.metadata)
    assert witness is not None and witness.sha256 == load_version(resource, witness).sha256
    client, model_id = resource.client(), logged_model_id(resource.client().get_model_version("flights.delay", "1"))
    for tag in (DIGEST, REGISTERED_DIGEST):
        if tag in client.get_logged_model(model_id).tags:
            client.delete_logged_model_tag(model_id, tag)
    changed = folder_of(resource, "flights.delay") / "MLmodel"
    changed.write_text(changed.read_text().replace("predict_fn: predict", "predict_fn: predict_proba"))
    with pytest.raises(ModelVersionError, match=r"is on record: someone changed them"):
        load_version(resource, find_version(resource, "flights.delay"))
    # Dagster's event log is the second witness, out of reach of who can write to MLflow.
    client.set_model_version_tag("flights.delay", "1", RECORD, dataclasses.replace(witness, sha256="").to_json())
    assert load_version(resource, find_version(resource, "flights.delay")).sha256 != witness.sha256
    with pytest.raises(ModelVersionError, match="someone changed them"):
        load_version(resource, witness)


def test_a_model_that_is_a_pickle_for_those_who_serve_it_is_refused(instance, resource):
    """Without a hash, as MLflow's own log_model stores it, somebody adds a pickle and names it in the MLmodel file."""

    @dg.asset(io_manager_key="models")
    def open_to_all() -> FittedModel:
        return fitted(verify=False)

    materialize(instance, open_to_all)
    record, folder = unsealed(resource, "open_to_all"), folder_of(resource, "open_to_all")
    Path(folder, "python_model.pkl").write_bytes(b"")
    described = yaml.safe_load(Path(folder, "MLmodel").read_text())
    described["flavors"]["python_function"] |= {
        "loader_module": "mlflow.pyfunc.model",
        "python_model": "python_model.pkl",
    }
    Path(folder, "MLmodel").write_text(yaml.safe_dump(described))
    for pyfunc in (True, False):
        with pytest.raises(ModelVersionError, match=r"mlflow.pyfunc.model loads it.*set allow_pickle"):
            load_version(resource, record, pyfunc=pyfunc)


@pytest.mark.formats
def test_a_graph_with_a_pickle_inside_is_refused(instance, resource):
    torch = pytest.importorskip("torch")

    @dg.asset(io_manager_key="models")
    def network() -> FittedModel:
        return FittedModel(torch.nn.Linear(1, 1), ROWS[["hour"]].to_numpy("float32"), options={"verify": False})

    materialize(instance, network)
    record, folder = unsealed(resource, "network"), folder_of(resource, "network")
    assert load_version(resource, record).format.name == "pt2"
    with zipfile.ZipFile(folder / "data" / "model.pt2", "a") as archive:
        archive.writestr("model/data/weights/evil.pt", pickle.dumps(print))
    with pytest.raises(ModelVersionError, match=r"(?s)not a pickle-free payload.*set allow_pickle"):
        load_version(resource, record)


@pytest.mark.parametrize(
    ("returned", "says"), [(LogisticRegression(), r"Return FittedModel\(model, X\)"), (fitted(trust=1), "TypeError")]
)
def test_what_cannot_be_stored_fails_without_a_version(instance, resource, returned, says):
    @dg.asset(io_manager_key="models")
    def broken():
        return returned

    result = dg.materialize([broken], instance=instance, resources=RESOURCES, raise_on_error=False)
    [failure] = result.get_step_failure_events()
    assert not resource.client().search_model_versions()
    assert says.replace("\\", "") in str(failure.step_failure_data.error)


def test_an_output_that_is_no_asset_is_refused_and_that_of_a_graph_asset_is_stored(instance, resource):
    @dg.op(out=dg.Out(io_manager_key="models"))
    def fit():
        return fitted()

    @dg.graph_asset
    def from_graph():
        return fit()

    @dg.job(resource_defs=RESOURCES)
    def no_asset():
        fit()

    result = no_asset.execute_in_process(instance=instance, raise_on_error=False)
    failure: Any = result.failure_data_for_node("fit")
    assert "result of op fit is not an asset" in failure.user_failure_data.description
    assert materialize(instance, from_graph).success and find_version(resource, "from_graph").version == "1"


def test_one_of_several_outputs_is_refused(instance, resource):
    @dg.multi_asset(specs=[dg.AssetSpec(name).with_io_manager_key("models") for name in ("one", "two")])
    def both():
        for name in ("one", "two"):
            yield dg.Output(FittedModel(LogisticRegression().fit(ROWS[["hour"]], ROWS["late"]), ROWS), name)

    result = materialize(instance, both, raise_on_error=False)
    assert "is one of 2 outputs of one step" in str(result.failure_data_for_node("both"))
    assert not resource.client().search_registered_models()


def test_an_input_without_a_version_says_so(instance, resource):
    with pytest.raises(ModelVersionError, match="no model version on record for"):
        materialize(instance, delay, said, selection=[said])


@pytest.mark.parametrize(("key", "name"), [(["a"], "a"), (["a", "b"], "a.b"), (["x:y", "ü"], "x%3Ay.%C3%BC")])
def test_registered_models_have_names_that_mlflow_takes(resource, key, name):
    assert registered_name(dg.AssetKey(key)) == name
    assert resource.client().create_registered_model(name).name == name


@pytest.mark.thorough
def test_a_store_that_is_killed_leaves_one_version_in_the_end(instance, resource):
    """Kill the run at random moments and re-execute it until it gets through: one version, and no half one."""
    environment = {"TEST_MLFLOW_URI": os.environ["TEST_MLFLOW_URI"]}
    started = time.monotonic()
    root, code = run_until_killed(instance, __file__, "make", environment)
    assert code == 0
    span, moments, client = time.monotonic() - started, random.Random(KILLS), resource.client()
    for kills in range(KILLS):
        before = len(client.search_model_versions("name='flights.delay'"))
        root, _ = run_until_killed(
            instance, __file__, "make", environment, kill_after=span * moments.uniform(0.2 + 0.6 * (kills % 2), 1.1)
        )
        recorded = len(instance.get_records_for_run(root, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION).records)
        latest, code = run_until_killed(instance, __file__, "make", environment, again=root)
        assert code == 0
        versions = client.search_model_versions("name='flights.delay'")
        assert len(versions) == before + 1 + recorded
        newest = max(versions, key=lambda version: int(version.version))
        assert str(client.get_logged_model(logged_model_id(newest)).status) == "READY"
        event = instance.get_latest_materialization_event(delay.key)
        assert event is not None and event.run_id == latest
        record = ModelVersion.from_metadata(event.asset_materialization.metadata)
        assert record is not None and record.version == str(newest.version)
        assert load_version(resource, record).model.n_estimators == 4
    [experiment] = [found for found in client.search_experiments() if found.name == "delay"]
    assert not client.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'")


STEP = """
import sklearn.base

class Scaled(sklearn.base.RegressorMixin, sklearn.base.BaseEstimator):
    def fit(self, rows, target=None):
        self.n_features_in_ = 1
        return self

    def predict(self, rows):
        from shop_io_scale import SCALE
        return rows["hour"] * SCALE
"""


def test_models_whose_code_has_one_name_are_loaded_side_by_side(instance, resource, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    # Python takes the bytecode of an equally long file of the same second for that of this one.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "shop_io_step.py").write_text(STEP)
    resources = {**RESOURCES, "pickles": mlflow_model_io_manager.configured({"allow_pickle": True})}

    def store(number: int) -> Any:
        (tmp_path / "shop_io_scale.py").write_text(f"SCALE = {number}\n")
        for name in ("shop_io_step", "shop_io_scale"):
            sys.modules.pop(name, None)
        step: Any = importlib.import_module("shop_io_step")

        @dg.asset(name=f"scaled_{number}", io_manager_key="pickles")
        def scaled() -> FittedModel:
            code = [str(tmp_path / f"{name}.py") for name in ("shop_io_step", "shop_io_scale")]
            options = {"code_paths": code, "serialization": "pickle", "pip_requirements": []}
            return FittedModel(step.Scaled().fit(ROWS), ROWS[["hour"]], options=options)

        dg.materialize([scaled], instance=instance, resources=resources)
        return step

    store(1)
    step = store(2)

    def compare(annotation: Any) -> dg.ExecuteInProcessResult:
        def compared(scaled_1: Any, scaled_2: Any) -> list[float]:
            return [float(model.predict(ROWS).sum()) for model in (scaled_1, scaled_2, scaled_1)]

        compared.__annotations__ |= {"scaled_1": annotation, "scaled_2": step.Scaled}
        asset = dg.asset(compared)
        old = [dg.AssetSpec(name).with_io_manager_key("pickles") for name in ("scaled_1", "scaled_2")]
        return dg.materialize([*old, asset], selection=[asset], instance=instance, resources=resources)

    total = float(ROWS["hour"].sum())
    assert compare(Any).output_for_node("compared") == [total, 2 * total, total]
    with pytest.raises(Exception, match="brings its own shop_io_step") as caught:
        compare(step.Scaled)
    assert isinstance(caught.value, ModelVersionError) or "ModelVersionError" in repr(caught.value.__cause__)
