"""The YAML of the DVC and Feast pages, loaded as it stands there, and run on repositories that have what it names."""

import importlib
import inspect
import os
import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import jsonschema
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from dagster._core.remote_representation.external_data import RepositorySnap  # what a code location tells the UI
from dagster.components.testing import create_defs_folder_sandbox

from dagster_mlops.dvc import (
    DatasetComponent,
    DvcResource,
    PipelineComponent,
    dataset_checks,
    imported_dataset_asset,
    imported_url_asset,
    observed_dataset_assets,
    pipeline_assets,
    revision_sensor,
)
from dagster_mlops.dvc import component as dvc_fields
from dagster_mlops.evaluation import EvaluationChecks, EvaluationComponent, evaluation_asset, evaluation_checks
from dagster_mlops.feast import (
    FeatureRepositoryComponent,
    feature_freshness_checks,
    feature_server_health_check,
    online_offline_parity_check,
    push_asset,
    training_set_asset,
    training_set_checks,
)
from dagster_mlops.feast import component_fields as feast_fields
from dagster_mlops.feast.repository import load_repository
from dagster_mlops.promotion import ModelCopyComponent, PromotionComponent, model_copy_asset, promotion_asset
from dagster_mlops.provenance import Dataset, records_in
from dagster_mlops.serving import BatchPredictionsComponent, FeedbackComponent, batch_predictions_asset, feedback_asset
from tests.support import known_warnings

pytestmark = [
    pytest.mark.usefixtures("warm_tools"),
    *known_warnings.DEPRECATED,
    *known_warnings.UNCLOSED,
    *known_warnings.DAGSTER_BETA,
]

DOCS = Path(__file__).parents[2] / "docs"
SETTINGS = """
project: flights
provider: local
registry: {registry_type: sql, path: "sqlite:///${FLIGHTS_STATE}/registry.db"}
online_store: {type: sqlite, path: "${FLIGHTS_STATE}/online.db"}
entity_key_serialization_version: 3
"""
DEFINITIONS = """
import os
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, ValueType
from feast.data_format import ParquetFormat
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64

stored = FileSource(
    name="weather", path=os.environ["FLIGHTS_STATE"] + "/weather", file_format=ParquetFormat(),
    timestamp_field="event_timestamp",
)
origin = Entity(name="origin", join_keys=["origin"], value_type=ValueType.STRING)
wind = [Field(name="wind_speed", dtype=Float64)]
pushed = PushSource(name="weather_push", batch_source=stored)
plain = {"entities": [origin], "schema": wind, "ttl": timedelta(days=9)}
origin_weather = FeatureView(name="origin_weather", source=pushed, **plain)
traffic = FeatureView(name="traffic", source=stored, **plain)

@on_demand_feature_view(
    sources=[origin_weather], schema=[Field(name="windy", dtype=Float64)], mode="python",
)
def windy(inputs):
    return {"windy": [float((speed or 0) > 10) for speed in inputs["wind_speed"]]}

arrival_delay = FeatureService(name="arrival_delay", features=[windy, origin_weather])
"""


def documented(page: str, component: str) -> list[dict[str, Any]]:
    """The component's YAML examples of a page."""
    blocks = re.findall(r"```yaml\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    return [yaml.safe_load(block) for block in blocks if f"type: dagster_mlops.{component}\n" in block]


@contextmanager
def loaded(
    component: Any, document: dict[str, Any], repo: Path | None = None, variables: str = ""
) -> Iterator[dg.Definitions]:
    """The definitions of a `defs.yaml` with this document, in a project that has `repo`."""
    with create_defs_folder_sandbox() as sandbox:
        if repo:
            shutil.copytree(repo, sandbox.project_root / "feature_repo")
        path = sandbox.scaffold_component(component_cls=component, defs_yaml_contents=document)
        (path / "variables.py").write_text(variables)
        with sandbox.load_component_and_build_defs(path) as (_, defs):
            yield defs


def refused(component: Any, attributes: dict[str, Any], repo: Path | None = None) -> str:
    """What a user reads who loads a component with these attributes."""
    document = {"type": component.__module__.replace("component", component.__name__)}
    with pytest.raises(Exception) as caught, loaded(component, {**document, "attributes": attributes}, repo):
        pass
    messages, error = [], caught.value
    while error:
        messages.append(str(error))
        error = error.__cause__
    return "\n".join(messages)


@pytest.fixture(scope="module")
def state(tmp_path_factory) -> Iterator[Path]:
    """Hourly weather of three days and a variable that says where it is."""
    state = tmp_path_factory.mktemp("state")
    times = pd.date_range("2013-01-01", periods=72, freq="h", tz="UTC", unit="us", name="event_timestamp")
    (state / "weather").mkdir()
    frame = pd.concat(pd.DataFrame({"origin": origin, "event_timestamp": times}) for origin in ("EWR", "JFK"))
    frame = frame.assign(wind_speed=range(len(frame))).astype({"wind_speed": "float64"})
    frame.to_parquet(state / "weather" / "2013-01.parquet", index=False, coerce_timestamps="us")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLIGHTS_STATE", str(state))
        yield state


@pytest.fixture(scope="module")
def repo(state, warm_tools) -> Path:
    """The Feast repository of the pages, described once."""
    repo = state / "feature_repo"
    repo.mkdir()
    (repo / "feature_store.yaml").write_text(SETTINGS)
    (repo / "features.py").write_text(DEFINITIONS)
    load_repository(repo)
    return repo


# --- Feast


@dg.asset
def training_entities() -> pd.DataFrame:
    times = pd.to_datetime(["2013-01-01 05:30", "2013-01-02 07:10", "2013-01-03 00:00"], utc=True).as_unit("us")
    flights = {"flight_id": [1, 2, 3], "origin": ["EWR", "JFK", "EWR"], "late": [0, 1, 0]}
    return pd.DataFrame({**flights, "scheduled_departure": times})


@dg.asset
def recent_weather() -> pd.DataFrame:
    times = pd.to_datetime(["2013-01-04 00:00"] * 2, utc=True).as_unit("us")
    return pd.DataFrame({"origin": ["EWR", "JFK"], "event_timestamp": times, "wind_speed": [3.0, 4.0]})


def test_the_repository_of_the_page_materializes_and_is_checked(repo, tmp_path, monkeypatch, free_port):
    monkeypatch.setenv("FEATURE_SERVER", f"http://127.0.0.1:{free_port()}")
    whole, _ = documented("feast.md", "feast.FeatureRepositoryComponent")
    with loaded(FeatureRepositoryComponent, whole, repo) as built, dg.instance_for_test() as instance:
        stores = {"dvc_io_manager": dg.FilesystemIOManager(base_dir=str(tmp_path))}
        defs = dg.Definitions.merge(built, dg.Definitions([training_entities, recent_weather], resources=stores))
        graph = defs.resolve_asset_graph()
        training = graph.get(dg.AssetKey("training_set"))
        assert training.parent_keys == {dg.AssetKey("training_entities"), dg.AssetKey("origin_weather")}  # not traffic
        assert training.automation_condition == dg.AutomationCondition.eager() and training.group_name == "features"
        job, done = defs.resolve_implicit_global_asset_job_def(), {}
        for month, names in ("2013-01-01", ["origin_weather"]), (None, ["training_set", "weather_now"]):
            selected = [dg.AssetKey(name) for name in names]
            if not month:
                selected += [dg.AssetKey("training_entities"), dg.AssetKey("recent_weather")]
            result = job.execute_in_process(
                instance=instance, partition_key=month, asset_selection=selected, raise_on_error=False
            )
            done |= {verdict.check_name: verdict for verdict in result.get_asset_check_evaluations()}
        pushed = result.asset_materializations_for_node("weather_now")[0].metadata
    assert pushed["feast/offline_writes"].value == 2 and pushed["feast/online_writes"].value == 2
    assert {name for name, verdict in done.items() if verdict.passed} >= {
        "null_shares", "no_duplicates", "rows_kept", "no_leakage", "ttl_misses", "online_offline_parity",
    }, {name: verdict.description for name, verdict in done.items()}  # fmt: skip
    assert not done["features_fresh"].passed and "at most 6:00:00 is allowed" in done["features_fresh"].description
    health = done["feature_server_health"]
    assert not health.passed and f"{os.environ['FEATURE_SERVER']}/health cannot be reached" in health.description


def test_the_training_sets_of_their_page_load(repo):
    [page] = documented("feast_training.md", "feast.FeatureRepositoryComponent")
    with loaded(FeatureRepositoryComponent, page, repo) as built:
        resources = dict.fromkeys(["dvc", "dvc_io_manager"], dg.InMemoryIOManager())
        entities = [dg.AssetSpec("training_entities"), dg.AssetSpec("monthly_entities")]
        defs = dg.Definitions.merge(built, dg.Definitions(entities, resources=resources))
        whole, monthly = (defs.resolve_assets_def(name) for name in ("training_set", "monthly_training_set"))
        assert "dvc" in whole.required_resource_keys
        assert whole.op.input_dict["entities"].dagster_type.typing_type is pa.Table
        partitions = monthly.partitions_def
        assert isinstance(partitions, dg.TimeWindowPartitionsDefinition) and partitions.timezone == "America/New_York"
        assert {key.name for key in defs.resolve_asset_graph().asset_check_keys} == {
            "null_shares", "no_duplicates", "rows_kept", "no_leakage", "ttl_misses", "cardinality",
        }  # fmt: skip


def test_the_other_repositories_of_the_pages_load(repo):
    _, translated = documented("feast.md", "feast.FeatureRepositoryComponent")
    with loaded(FeatureRepositoryComponent, translated, repo) as defs:
        specs = {spec.key.to_user_string(): spec for spec in defs.resolve_all_asset_specs()}
    assert "feature_services/arrival_delay" in specs
    assert {tuple(spec.owners) for spec in specs.values()} == {("team:features",)}
    assert specs["traffic"].metadata["feast_name"] == "traffic"
    translated["attributes"] |= {"include": ["entities"], "freshness": False, "pool": "online", "key_prefix": ["f"]}
    translated["attributes"]["freshness_checks"] = [{"view": "traffic"}]
    translated["attributes"]["pushes"] = [{"name": "now", "rows": "recent", "feature_view": "traffic"}]
    with loaded(FeatureRepositoryComponent, translated, repo) as built:
        defs = dg.Definitions.merge(built, dg.Definitions([dg.AssetSpec("recent")]))
        graph = defs.resolve_asset_graph()
        assert {key.to_user_string() for key in graph.get_all_asset_keys()} == {
            "now",
            "recent",
            "f/origin_weather", "f/traffic", "f/entities/origin",
        }  # fmt: skip
        assert {key.asset_key.to_user_string() for key in graph.asset_check_keys} == {"f/traffic"}
        assert defs.resolve_assets_def(["f", "traffic"]).op.pool == "online"
    [example] = re.findall(r"```yaml\n(.*?)```", FeatureRepositoryComponent.__doc__ or "", re.DOTALL)
    with loaded(FeatureRepositoryComponent, yaml.safe_load(example), repo) as defs:
        others = dg.Definitions(
            [dg.AssetSpec("training_entities")], resources={"dvc_io_manager": dg.InMemoryIOManager()}
        )
        whole = dg.Definitions.merge(defs, others)
        assert "training_set" in {spec.key.to_user_string() for spec in whole.resolve_all_asset_specs()}


MAPPING = """
import dagster as dg

@dg.template_var
def the_month_before():
    return dg.TimeWindowPartitionMapping(start_offset=-1, end_offset=-1)
"""


def test_objects_come_from_template_variables_of_the_users(repo):
    months = {"every": "month", "start": "2013-01-01"}
    mapped = {**TRAINING, "partitions": months, "partition_mapping": "{{ the_month_before }}"}
    document = {
        "type": "dagster_mlops.feast.FeatureRepositoryComponent",
        "template_vars_module": ".variables",
        "attributes": {"repo": str(repo), "training_sets": [mapped]},
    }
    with loaded(FeatureRepositoryComponent, document, variables=MAPPING) as defs:
        [training] = [asset for asset in defs.assets or () if getattr(asset, "keys", ()) == {dg.AssetKey("t")}]
        assert isinstance(training, dg.AssetsDefinition)
        assert training.get_partition_mapping(dg.AssetKey("e")) == dg.TimeWindowPartitionMapping(
            start_offset=-1, end_offset=-1
        )


SERVER = {"asset": "a", "url": "http://x", "feature_service": "arrival_delay", "entities": {}}
TRAINING = {"name": "t", "feature_service": "arrival_delay", "entities": "e"}


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        (
            {"training_sets": [{**TRAINING, "feature_service": "arrivals"}]},
            ["training_sets: feature_service: ", "no feature service 'arrivals' (it has: arrival_delay)"],
        ),
        (
            {"pushes": [{"name": "p", "rows": "r", "push_source": "nothing"}]},
            ["pushes: push_source: ", "(it has: weather_push)"],
        ),
        (
            {"pushes": [{"name": "p", "rows": "r", "feature_view": "wether"}]},
            ["pushes: feature_view: ", "(it has: origin_weather, traffic)"],
        ),
        ({"pushes": [{"name": "p", "rows": "r"}]}, ["'p' needs either push_source=… or feature_view=…"]),
        (
            {"pushes": [{"name": "p", "rows": "r", "push_source": "weather_push", "to": "both"}]},
            ["defs.yaml:", "pushes", "'online', 'offline' or 'online_and_offline'"],
        ),
        ({"freshness_checks": [{"view": "wether"}]}, ["freshness_checks: view: ", "(it has: origin_weather, traffic)"]),
        (
            {"freshness_checks": [{"view": "traffic", "max_lag": "6h"}]},
            ["defs.yaml:3 - attributes.freshness_checks.0.max_lag", "Write one as {hours: 6}"],
        ),
        (
            {"freshness_checks": [{"view": "traffic", "max_lag": {"hour": 6}}]},
            ["max_lag.Duration.hour at", "defs.yaml:", "Extra inputs"],
        ),
        (
            {"parity_checks": [{"asset": "a", "feature_service": "arrival_delay", "sample": 0}]},
            ["parity_checks", "sample", "defs.yaml:", "greater than or equal to 1"],
        ),
        ({"server_checks": [{**SERVER, "min_present": 2}]}, ["min_present", "less than or equal to 1"]),
        (
            {"server_checks": [{**SERVER, "url": {"environ": "X"}}]},
            ["url.EnvironmentVariable.env at", "Field required"],
        ),
        (
            {"training_sets": [{**TRAINING, "checks": {"max_null_share": {"wind": 1.5}}}]},
            ["max_null_share", "less than or equal to 1"],
        ),
        (
            {"training_sets": [{**TRAINING, "entities_type": "pyarrow.Tabel"}]},
            ["entities_type: 'pyarrow.Tabel' cannot be imported", "Name a type such as pyarrow.Table"],
        ),
        (
            {"partitions": {"every": "mont", "start": "2013-01-01"}},
            ["partitions.Partitions.every at", "'hour', 'day', 'week' or 'month'"],
        ),
        ({"partitions": "month"}, ["'month' does not name partitions", '{every: month, start: "2013-01-01"}']),
        ({"automation_condition": "eager"}, ["'eager' is a text", "{{ automation_condition.eager() }}"]),
        ({"training_set": TRAINING}, ["training_set at", "Extra inputs are not permitted"]),
    ],
)
def test_a_wrong_value_is_refused_when_definitions_load_with_its_field_and_what_is_right(repo, attributes, told):
    message = refused(FeatureRepositoryComponent, {"repo": str(repo), **attributes})
    assert [words for words in told if words not in message] == [], message


# --- DVC


def run_git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def vendor(tmp_path) -> Path:
    """A git repository of another team, with a plain file, and a dataset that DVC versions."""
    folder = tmp_path / "vendor"
    dvc = DvcResource(repo=str(folder), remote_url=str(tmp_path / "vendor_remote"))
    dvc.init()
    run_git(folder, "checkout", "-q", "-b", "main")
    pd.DataFrame({"wind": [1.0] * 30}).to_parquet(folder / "weather.parquet", index=False)
    run_git(folder, "add", ".")
    run_git(folder, "commit", "-q", "-m", "Weather")
    (folder / "vendor").mkdir()
    pd.DataFrame({"price": [1, 2]}).to_parquet(folder / "vendor" / "prices.parquet", index=False)
    dvc.store("vendor/prices.parquet", rows=2)
    return folder


@dg.asset(io_manager_key="dvc_io_manager")
def gusts(weather: pd.DataFrame) -> pd.DataFrame:
    return weather + 1


def test_imports_and_checks_of_the_page_run_and_secrets_stay_names(vendor, tmp_path, monkeypatch):
    first, _ = documented("dvc.md", "dvc.DatasetComponent")
    told = first["attributes"]
    (tmp_path / "zones.csv").write_text("zone\nUTC\n")
    # In place of what is beyond the test's reach:
    told["resource"] |= {"repo": "flights", "remote_url": str(tmp_path / "remote")}
    told["imported_datasets"][0]["url"] = str(vendor)
    told["imported_urls"][0] |= {"url": str(tmp_path / "zones.csv"), "options": {}}
    told["checks"][0]["min_rows"] = 20
    monkeypatch.setenv("S3_SECRET", "s3cr3t")
    with loaded(DatasetComponent, first) as defs, dg.instance_for_test() as instance:
        snapshot = dg.serialize_value(RepositorySnap.from_def(defs.get_repository_def()))
        assert "S3_SECRET" in snapshot and "s3cr3t" not in snapshot
        assert defs.resources and Path(defs.resources["dvc"].repo).parent.parent.name == "defs"
        assert defs.resources["dvc"].config()["remote"]["storage"]["secret_access_key"] == "s3cr3t"
        told["resource"].pop("remote_config")  # no option of a folder
    with loaded(DatasetComponent, first) as built, dg.instance_for_test() as instance:
        defs = dg.Definitions.merge(built, dg.Definitions([gusts]))
        result = defs.resolve_implicit_global_asset_job_def().execute_in_process(instance=instance)
        assert {check.check_name: check.passed for check in result.get_asset_check_evaluations()} == {
            "remote_has_object": True, "row_count": True, "no_column_lost": True,
        }  # fmt: skip
        stored = {
            record.path: record
            for event in result.get_asset_materialization_events()
            for record in records_in(event.materialization.metadata)
            if isinstance(record, Dataset)
        }
        assert stored["weather.parquet"].rows == 30 and stored["raw/zones.csv"].bytes == 9
        assert stored["gusts.parquet"].rows == 30
        assert {spec.group_name for spec in built.resolve_all_asset_specs()} == {"raw"}


def test_observed_datasets_and_sensors_of_the_page_work(vendor):
    _, second = documented("dvc.md", "dvc.DatasetComponent")
    second["attributes"]["repo"] = str(vendor)
    with loaded(DatasetComponent, second) as defs, dg.instance_for_test() as instance:
        [spec] = defs.resolve_all_asset_specs()
        assert spec.key == dg.AssetKey(["vendor", "prices"]) and spec.group_name == "vendor"
        watching, retrain = defs.resolve_sensor_def("dataset_revisions"), defs.resolve_sensor_def("retrain")
        assert watching.default_status is dg.DefaultSensorStatus.RUNNING
        with dg.build_sensor_context(instance=instance, definitions=defs) as context:
            [seen] = watching.evaluate_tick(context).asset_events
            assert seen.asset_key == spec.key
            assert retrain.evaluate_tick(context).skip_message  # the first tick notes where the branch is


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        ({"checks": [{"asset": "a", "checks": ["rows"]}]}, ["defs.yaml:", "checks", "'row_count'"]),
        ({"checks": [{"asset": "a", "min_ratio": 3}]}, ["checks: min_ratio 3 is above max_ratio 2"]),
        ({"checks": [{"asset": "a", "min_rows": 0}]}, ["min_rows", "defs.yaml:", "greater than or equal to 1"]),
        (
            {"imported_datasets": [{"path": "a", "url": "https://me:s3cr3t@host/x"}]},
            ["https://***@host/x has a password in it"],
        ),
        ({"imported_urls": [{"path": "a"}]}, ["imported_urls", "url", "Field required"]),
        ({"revision_sensors": [{}]}, ["revision_sensors: dataset_revisions has no datasets. Give it some"]),
        ({"datasets": {"a": "a.csv"}, "revision_sensors": [{"mode": "run"}]}, ["Pass job=… or asset_selection=…"]),
        ({"resource": {"remote": "x"}}, ["resource", "repo", "Field required"]),
    ],
)
def test_a_wrong_value_of_datasets_is_refused_when_definitions_load(attributes, told):
    message = refused(DatasetComponent, attributes)
    assert [words for words in told if words not in message] == [] and "s3cr3t" not in message, message


def test_the_example_of_the_component_loads(tmp_path):
    [example] = re.findall(r"```yaml\n(.*?)```", DatasetComponent.__doc__ or "", re.DOTALL)
    with loaded(DatasetComponent, yaml.safe_load(example)) as defs:
        assert (
            len(defs.resolve_all_asset_specs()) == 3
            and defs.resources
            and set(defs.resources) == {"dvc", "dvc_io_manager"}
        )


# --- both


FACTORIES = {
    feast_fields.TrainingSet: training_set_asset,
    feast_fields.TrainingSetChecks: training_set_checks,
    feast_fields.Push: push_asset,
    feast_fields.FreshnessCheck: feature_freshness_checks,
    feast_fields.ParityCheck: online_offline_parity_check,
    feast_fields.ServerCheck: feature_server_health_check,
    dvc_fields.ImportedDataset: imported_dataset_asset,
    dvc_fields.ImportedUrl: imported_url_asset,
    dvc_fields.DatasetChecks: dataset_checks,
    dvc_fields.RevisionSensor: revision_sensor,
    dvc_fields.DvcRepository: DvcResource,
    PromotionComponent: promotion_asset,
    ModelCopyComponent: model_copy_asset,
    EvaluationComponent: evaluation_asset,
    EvaluationChecks: evaluation_checks,
    BatchPredictionsComponent: batch_predictions_asset,
    FeedbackComponent: feedback_asset,
}
# Known from where the fields stand, or code that has no place in YAML.
NO_FIELD = {
    feast_fields.TrainingSetChecks: {"asset", "feature_service", "timestamp_column"},
    feast_fields.ParityCheck: {"request_data"},
    dvc_fields.RevisionSensor: {"job", "repo"},
    EvaluationComponent: {"model"},  # `trained`
    EvaluationChecks: {"evaluation"},
    BatchPredictionsComponent: {"log_rules"},
}
RENAMED = {
    feast_fields.TrainingSet: {"checks", "partitions"},
    feast_fields.Push: {"checks", "partitions"},
    EvaluationComponent: {"checks", "trained"},
    PromotionComponent: {"after_move", "minimum_interval_seconds"},  # of sensors
}
OF_ASSETS = set(inspect.signature(dg.asset).parameters)  # handed on by factories that take options


@pytest.mark.parametrize("fields", FACTORIES, ids=lambda fields: fields.__name__)
def test_fields_are_the_arguments_of_their_factory_and_explain_themselves(fields):
    factory = FACTORIES[fields]
    known = DvcResource.model_fields if factory is DvcResource else inspect.signature(factory).parameters
    passed_on = OF_ASSETS if "asset_options" in known else set()
    assert set(fields.model_fields) - set(known) - RENAMED.get(fields, set()) - passed_on == set()
    forgotten = set(known) - set(fields.model_fields) - NO_FIELD.get(fields, set())
    assert {name for name in forgotten if not name.endswith("_options")} == set()
    assert [name for name, field in fields.model_fields.items() if not field.description] == []
    different = {
        name: (field.default, known[name].default)
        for name, field in fields.model_fields.items()
        if name in known and not field.is_required() and field.default is not None
        and field.default != known[name].default
        and not (field.default in ({}, []) and known[name].default in (None, ()))
    }  # fmt: skip
    different.pop("default_status", None)  # by name in YAML
    assert different == {}


def test_definitions_load_without_a_warning_that_something_is_beta(vendor):
    with warnings.catch_warnings():
        warnings.simplefilter("error", dg.BetaWarning)
        assets = [
            imported_dataset_asset(path="a.parquet", url="https://git.example.com/a"),
            observed_dataset_assets(datasets={"b": "b.parquet"}, repo=str(vendor)),
            *pipeline_assets(repo=vendor),
        ]
        dg.Definitions(assets, resources={"dvc": DvcResource(repo=str(vendor))}).resolve_asset_graph()


@pytest.mark.parametrize(
    ("component", "attributes", "told"),
    [
        (
            FeatureRepositoryComponent,
            {"pushes": [{"rows": "r", "too": 1}]},
            {"pushes.0: 'name' is a required property"},
        ),
        (FeatureRepositoryComponent, {"partitions": {"every": "mont"}}, {"partitions.every: 'mont' is not one of"}),
        (
            FeatureRepositoryComponent,
            {"freshness_checks": [{"max_lag": {"hour": 1}}]},
            {"freshness_checks.0.max_lag: A"},
        ),
        (FeatureRepositoryComponent, {"server_checks": [{"timeout": 0}]}, {"server_checks.0.timeout: 0 is less than"}),
        (FeatureRepositoryComponent, {"server_checks": [{"timeout": "{{ x }}"}]}, set()),
        (FeatureRepositoryComponent, {"include": "{{ x }}", "views": None, "pool": "a"}, set()),
        (FeatureRepositoryComponent, {"views": "a"}, {"views: 'a' is not of type 'array'"}),
        (DatasetComponent, {"checks": [{"checks": ["rows"]}]}, {"checks.0.checks.0: 'rows' is not one of"}),
        (DatasetComponent, {"resource": {"push": 3}}, {"resource.push: 3 is not of type 'boolean'"}),
    ],
)
def test_the_schema_points_at_the_wrong_value_and_lets_templates_be(component, attributes, told):
    """As `dg check yaml` and editors use it."""
    validator = jsonschema.Draft202012Validator(component.get_model_cls().model_json_schema())
    errors = [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in validator.iter_errors(attributes)]
    assert [wanted for wanted in told if not any(error.startswith(wanted) for error in errors)] == [], errors
    assert told or not [error for error in errors if "required" not in error]


@pytest.mark.parametrize("component", [FeatureRepositoryComponent, DatasetComponent, PipelineComponent])
def test_the_schema_explains_every_field(component):
    schema = component.get_model_cls().model_json_schema()
    parts = [schema, *schema["$defs"].values()]
    ours = [part for part in parts if "ui:order" in part and part["title"] != "Asset Spec Update Kwargs"]
    silent = [(part["title"], name) for part in ours for name, f in part["properties"].items() if not f["description"]]
    assert silent == []


def test_every_component_on_a_page_fits_its_schema():
    """Also against YAML itself: it reads a field that is named ``on`` as True."""
    blocks = [
        block for page in DOCS.rglob("*.md") for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    ]
    documents = [
        document for block in blocks if "type: dagster_mlops." in block for document in yaml.safe_load_all(block)
    ]
    components = [(document["type"].rpartition("."), document) for document in documents if "type" in document]
    assert len(components) > 20
    validators = {}
    for (module, _, name), document in components:
        if name not in validators:
            schema = getattr(importlib.import_module(module), name).get_model_cls().model_json_schema()
            validators[name] = jsonschema.Draft202012Validator(schema)
        validators[name].validate(document["attributes"])
