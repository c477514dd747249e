"""Rules for every factory: how it takes assets and options, and what its checks leave when they crash."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import typing
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import dagster_mlops
from dagster_mlops.bentoml import BentomlResource
from dagster_mlops.core.asset_keys import asset_key
from dagster_mlops.core.checks import never_missing
from dagster_mlops.dvc import DatasetCheck, DvcResource, dvc_io_manager
from dagster_mlops.errors import DatasetError
from dagster_mlops.evidently import EvidentlyResource
from dagster_mlops.feast import FeastResource
from dagster_mlops.k8s import KubernetesResource, KubernetesTarget
from dagster_mlops.mlflow import MlflowResource, promotion_asset
from tests.support import known_warnings

pytestmark = [
    pytest.mark.usefixtures("warm_tools"),
    *known_warnings.DEPRECATED,
    *known_warnings.UNCLOSED,
    *known_warnings.DAGSTER_BETA,
]

KEY = dg.AssetKey(["raw", "weather"])
FEATURES = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource
from feast.types import Float32
source = FileSource(name="weather_source", path="weather.parquet", timestamp_field="at")
push = PushSource(name="weather_push", batch_source=source)
origin = Entity(name="origin", join_keys=["origin"])
view = FeatureView(name="weather", entities=[origin], ttl=timedelta(days=1), schema=[Field(name="wind", dtype=Float32)],
                   source=source)
service = FeatureService(name="delay", features=[view])
"""


def _trains(context):
    """A function for factories that decorate one."""


def _tries(trial) -> float:
    return 0.0


# By factory: arguments that make it, where assets are named by the text that stands for KEY.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "batch_predictions_asset": {"promoted": "raw/weather", "rows": "raw/weather"},
    "alarm_asset": {"history": "raw/weather", "time": "time_hour", "rows": 100},
    "alert_sensor": {"checks": ["raw/weather:divergence"], "send": print},
    "divergence_checks": {"deployment": "raw/weather"},
    "divergence_sensor": dict.fromkeys(("deployment", "alarm", "report", "labels"), "raw/weather"),
    "incident_report_asset": {"deployment": "raw/weather", "alarm": "raw/weather"},
    "response_sensor": {"check": "raw/weather:divergence", "asset_selection": ["raw/weather"]},
    "bento_asset": {"promoted": "raw/weather"},
    "data_quality_check": {"asset": "raw/weather", "reference": "raw/weather"},
    "dataset_asset": {},
    "dataset_checks": {"asset": "raw/weather", "checks": typing.get_args(DatasetCheck)},
    "alias_sensor": {"registered_model_name": "delay", "asset_selection": ["raw/weather"]},
    "deployment_asset": {"bento": "raw/weather", "golden_set": "raw/weather", "state_dir": "state"},
    "deployment_health_check": {"asset": "raw/weather"},
    "deployment_health_sensor": {"deployment": "raw/weather"},
    "close_orphan_runs_sensor": {},
    "drift_check": {"asset": "raw/weather", "reference": "raw/weather"},
    "evaluation_asset": {
        "name": "evaluation", "model": "raw/weather", "rows": "raw/weather", "training_rows": "raw/weather",
        "label": "late",
    },
    "evaluation_checks": {"evaluation": "raw/weather", "bounds": {"auc": (0.7, None)}, "max_drop": {"auc": 0.0}},
    "feature_freshness_checks": {"asset": "raw/weather", "max_lag": timedelta(hours=1)},
    "feature_repository_defs": {"repo": "features", "sources": {"weather_source": "raw/weather"}, "freshness": False},
    "feature_server_health_check": {
        "asset": "raw/weather", "url": "http://127.0.0.1:9", "feature_service": "delay", "entities": {"origin": ["JFK"]}
    },
    "feature_view_assets": {"repo": "features", "deps": {"weather": ["raw/weather"]}},
    "feedback_asset": {
        "prediction_log": "log", "labels": "raw/weather", "label": "late", "time": "landed_at"
    },
    "imported_dataset_asset": {"path": "a.parquet", "url": "https://git.example.com/a"},
    "imported_url_asset": {"path": "a.csv", "url": "https://example.com/a.csv"},
    "kubernetes_deployment_asset": {
        "package": "raw/weather", "golden_set": "raw/weather", "target": KubernetesTarget(namespace="ml", image="{tag}")
    },
    "kubernetes_deployment_check": {"asset": "raw/weather"},
    "metric_checks": {"asset": "raw/weather", "bounds": {"auc": (0.7, None)}},
    "observed_dataset_assets": {"datasets": {"raw/weather": "weather.parquet"}},
    "online_offline_parity_check": {"asset": "raw/weather", "feature_service": "delay"},
    "performance_check": {
        "asset": "raw/weather", "target": "late", "prediction": "probability", "labels": "raw/weather", "key": "id",
        "reference": "raw/weather",
    },
    "pipeline_assets": {"repo": "pipeline"},
    "approval_asset": {"promotion": "raw/weather", "registered_model_name": "delay"},
    "approval_sensor": {"promotion": "raw/weather", "registered_model_name": "delay"},
    "model_copy_asset": {
        "name": "copy", "registered_model_name": "delay", "source": "mlflow_dev", "candidate": "raw/weather"
    },
    "promotion_asset": {
        "candidate": "raw/weather", "evaluation": "raw/weather", "registered_model_name": "delay", "metric": "auc"
    },
    "push_asset": {"name": "pushed", "rows": "raw/weather", "push_source": "weather_push"},
    "reference_asset": {"name": "reference", "model": "raw/weather", "rows": "raw/weather", "label": "late"},
    "reproduction_asset": {"training": "delay/1"},
    "revision_sensor": {"datasets": {"raw/weather": "weather.parquet"}},
    "scoring_package_asset": {"promoted": "raw/weather"},
    "sweep_asset": {"registered_model_name": "delay", "metric": "auc", "direction": "maximize", "n_trials": 1},
    "sweep_trials": {
        "name": "sweep", "registered_model_name": "delay", "metric": "auc", "direction": "maximize", "n_trials": 1
    },
    "training_asset": {"registered_model_name": "delay"},
    "training_set_checks": {"asset": "raw/weather", "feature_service": "delay", "unique": ["origin"], "label": "late"},
    "training_set_asset": {"name": "training_set", "feature_service": "delay", "entities": "raw/weather"},
}  # fmt: skip


def _factories() -> dict[str, Any]:
    """Every function at the door of a tool or verb that makes assets, checks or a sensor, by name."""
    found: dict[str, Any] = {}
    results = re.compile(r"AssetsDefinition|AssetChecksDefinition|SensorDefinition|PartitionedSweep|\.Definitions")
    for module in pkgutil.walk_packages(dagster_mlops.__path__, "dagster_mlops."):
        if module.name.rpartition(".")[2].startswith("_") or ".core" in module.name or "serving.service" in module.name:
            continue
        door = getattr(importlib.import_module(".".join(module.name.split(".")[:2])), "__all__", ())
        for name, value in vars(importlib.import_module(module.name)).items():
            if inspect.isfunction(value) and value.__module__ == module.name and name in door:
                made = str(inspect.signature(value).return_annotation)
                if results.search(made):
                    found.setdefault(name, value)  # a tool's before the verb that it calls
    found.pop("validate_definitions", None)  # it gives back what it was given
    return dict(sorted(found.items()))


FACTORIES = _factories()
CHECKS = [name for name in FACTORIES if name.endswith(("_check", "_checks"))]
SENSORS = [name for name in FACTORIES if name.endswith("_sensor")]
ASSETS = [name for name in FACTORIES if name not in (*CHECKS, *SENSORS)]


@pytest.fixture(scope="module")
def repositories(tmp_path_factory) -> Path:
    """A folder with a Feast repository and a DVC project."""
    home = tmp_path_factory.mktemp("factories")
    (home / "features").mkdir()
    (home / "features" / "definitions.py").write_text(FEATURES)
    (home / "features" / "feature_store.yaml").write_text(
        "project: shop\nprovider: local\nregistry: registry.db\nonline_store: {type: sqlite, path: online.db}\n"
        "entity_key_serialization_version: 3\n"
    )
    (home / "pipeline").mkdir()
    subprocess.run(["git", "init", "--quiet", "pipeline"], cwd=home, check=True)
    (home / "pipeline" / ".dvc").mkdir()
    (home / "pipeline" / "dvc.yaml").write_text("stages:\n  train:\n    cmd: 'true'\n    outs: [model.bin]\n")
    return home


@pytest.fixture(autouse=True)
def beside_repositories(repositories, monkeypatch):
    monkeypatch.chdir(repositories)


TAKES_ADDRESS = re.compile(r"(^|_)(url|uri|dsn|storage|token|password|address|endpoint)$")
ADDRESSES = [
    (name, argument)
    for name, factory in FACTORIES.items()
    for argument in inspect.signature(factory).parameters
    if TAKES_ADDRESS.search(argument)
]


def test_an_argument_that_takes_an_address_warns_of_a_credential_or_refuses_it():
    assert len(ADDRESSES) >= 7
    for name, argument in ADDRESSES:
        with pytest.raises((UserWarning, DatasetError), match=r"password|credential") as caught:
            FACTORIES[name](**{**ARGUMENTS[name], argument: "https://me:Xy7-hidden@host/x?token=Xy7-hidden"})
        assert "Xy7-hidden" not in str(caught.value), (name, argument)


NAMES = [
    (name, argument)
    for name, factory in FACTORIES.items()
    for argument in inspect.signature(factory).parameters
    if argument in ("registered_model_name", "alias")
]


def test_an_empty_name_of_a_model_or_an_alias_is_refused_when_definitions_load():
    assert {name for name, _ in NAMES} >= {"promotion_asset", "approval_asset", "approval_sensor", "alias_sensor"}
    for name, argument in NAMES:
        _make(name)
        for registry in ({}, {"registry": "gto"})[: 1 + ("registry" in inspect.signature(FACTORIES[name]).parameters)]:
            for empty in ("", "  "):
                with pytest.raises(dg.DagsterInvalidDefinitionError, match=f"{argument}='.*' is empty"):
                    _make(name, **{argument: empty}, **registry)


def _make(name: str, **options: Any) -> list[Any]:
    """What a factory makes of its arguments and some more: assets, specs, checks and sensors."""
    made = FACTORIES[name](**{**ARGUMENTS[name], **options})
    if name in ("training_asset", "dataset_asset"):
        made = made(_trains)
    elif name in ("sweep_asset", "sweep_trials"):
        made = made(_tries)
    if name == "sweep_trials":
        made = made.assets
    elif isinstance(made, dg.Definitions):
        made = list(made.assets or ())
    return made if isinstance(made, list) else [made]


def _keys(made: list[Any]) -> set[dg.AssetKey]:
    """All asset keys that definitions name."""
    keys: set[dg.AssetKey] = set()
    for definition in made:
        if isinstance(definition, dg.SensorDefinition):
            selection = definition.asset_selection
            keys |= set(selection.resolve([weather])) if selection else set()
        elif isinstance(definition, dg.AssetSpec):
            keys |= {definition.key, *(dep.asset_key for dep in definition.deps)}
        else:
            checks = list(definition.check_specs)
            keys |= {spec.asset_key for spec in checks}
            keys |= {dep.asset_key for spec in checks for dep in spec.additional_deps}
            if not isinstance(definition, dg.AssetChecksDefinition):
                keys |= {*definition.keys, *definition.keys_by_input_name.values()}
                links = [value for spec in definition.specs for value in spec.metadata.values()]
                keys |= {link.asset_key for link in links if isinstance(link, dg.DagsterAssetMetadataValue)}
    return keys


def test_the_table_of_arguments_has_every_factory():
    assert sorted(ARGUMENTS) == sorted(FACTORIES)


@pytest.mark.parametrize("name", FACTORIES)
def test_a_factory_takes_keywords_only(name):
    kinds = {parameter.kind for parameter in inspect.signature(FACTORIES[name]).parameters.values()}
    assert kinds <= {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}


# --- assets as arguments


def _named_assets(name: str) -> list[str]:
    """The arguments of a factory that name an asset: those annotated as such, and those that the table has as text."""
    parameters = inspect.signature(FACTORIES[name]).parameters
    annotated = [n for n, p in parameters.items() if dg.AssetKey in typing.get_args(p.annotation)]
    written = [n for n, value in ARGUMENTS.get(name, {}).items() if value == "raw/weather"]
    assert set(written) >= set(annotated), f"say {annotated} in the table"
    assert set(annotated) >= set(written), f"{written} take an AssetLike"
    return annotated


@dg.asset(key=KEY)
def weather() -> None: ...


@pytest.mark.parametrize(
    ("name", "argument"), [(name, argument) for name in ARGUMENTS for argument in _named_assets(name)]
)
def test_an_asset_is_named_by_key_definition_spec_or_text_alike(name, argument):
    keys = [_keys(_make(name, **{argument: form})) for form in (KEY, weather, dg.AssetSpec(KEY), "raw/weather")]
    assert KEY in keys[0]
    assert all(other == keys[0] for other in keys)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {"deps": ["raw/rain"]}) for name in ASSETS if "deps" not in ARGUMENTS.get(name, {})),
        ("feature_view_assets", {"deps": {"weather": ["raw/rain"]}}),
        ("feature_repository_defs", {"sources": {"weather_source": "raw/rain"}}),
        ("observed_dataset_assets", {"datasets": {"raw/rain": "rain.parquet"}}),
        *((name, {"key": "raw/rain"}) for name in ("dataset_asset", "bento_asset", "training_asset", "push_asset")),
        *((name, {"additional_deps": ["raw/rain"]}) for name in CHECKS),
    ],
)
def test_a_text_with_a_slash_is_a_key_of_two_parts_wherever_it_stands(name, options):
    if name == "feature_repository_defs" and "deps" in options:
        options = {"deps": {"weather": options["deps"]}}
    assert dg.AssetKey(["raw", "rain"]) in _keys(_make(name, **options))


def test_an_input_without_a_key_is_refused():
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="needs the key"):
        asset_key(dg.AssetIn())


def test_texts_become_keys_in_one_file_only():
    library = Path(dagster_mlops.__file__).parent
    files = {
        str(file.relative_to(library))
        for file in library.rglob("*.py")
        if "from_coercible" in file.read_text() or "AssetKey.from_user_string" in file.read_text()
    }
    # The script of a rerun has keys as Dagster printed them.
    assert files == {"core/asset_keys.py", "mlflow/training/_rerun_script.py"}


# --- options of Dagster

OPTIONS: dict[str, Any] = {
    "automation_condition": dg.AutomationCondition.eager(),
    "code_version": "code 7",
    "description": "Described.",
    "group_name": "weather_group",
    "kinds": {"csv"},
    "metadata": {"written": 7},
    "op_tags": {"gpu": "7"},
    "owners": ["team:weather"],
    "pool": "slow",
    "retry_policy": dg.RetryPolicy(max_retries=7),
    "tags": {"season": "winter"},
}
# An observation is no computation: Dagster has no such option of it.
NOT_OF_OBSERVATIONS = {"op_tags", "pool", "retry_policy"}
# A stage and a feature view have what their tool knows of them, unless `get_asset_spec` says otherwise.
FROM_THE_TOOL = {"pipeline_assets": {"code_version", "description"}, "feature_view_assets": {"description"}}
FROM_THE_TOOL["feature_repository_defs"] = FROM_THE_TOOL["feature_view_assets"]


def _reached(definition: dg.AssetsDefinition, option: str) -> bool:
    [spec, *_] = definition.specs
    value = OPTIONS[option]
    if option == "op_tags":
        return definition.op.tags.get("gpu") == "7"
    if option in ("retry_policy", "pool"):
        return getattr(definition.op, option) == value
    have = getattr(spec, option)
    if option == "metadata":
        return "written" in have
    return set(value) <= set(have) if option in ("kinds", "owners", "tags") else have == value


@pytest.mark.parametrize("name", ASSETS)
def test_what_an_asset_takes_reaches_the_definition(name):
    left_out = NOT_OF_OBSERVATIONS if name == "observed_dataset_assets" else FROM_THE_TOOL.get(name, set())
    options = {option: value for option, value in OPTIONS.items() if option not in left_out}
    if name == "sweep_trials":  # two further assets come with it
        made = [_make(name, **options)[1]]
        options.pop("description")
    else:
        made = [d for d in _make(name, **options) if isinstance(d, dg.AssetsDefinition)]
    assert made
    assert [(d.key, option) for d in made for option in options if not _reached(d, option)] == []


@pytest.mark.parametrize("name", CHECKS)
def test_what_a_check_takes_reaches_the_definition(name):
    named = ("automation_condition", "metadata", "op_tags", "pool", "retry_policy")
    for definition in _make(name, **{option: OPTIONS[option] for option in named}):
        assert definition.op.tags["gpu"] == "7" and definition.op.pool == "slow"
        assert definition.op.retry_policy == OPTIONS["retry_policy"]
        for spec in definition.check_specs:
            assert spec.metadata["written"] == 7 and spec.automation_condition == OPTIONS["automation_condition"]


@pytest.mark.parametrize("name", SENSORS)
def test_what_a_sensor_takes_reaches_the_definition(name):
    named = ["description", "metadata", "owners", "tags"]
    if name == "revision_sensor":  # its `tags` are those of git
        named.remove("tags")
    [sensor] = _make(name, **{option: OPTIONS[option] for option in named})
    assert sensor.description == "Described." and ("tags" not in named or sensor.tags["season"] == "winter")
    assert "written" in sensor.metadata and sensor.owners == OPTIONS["owners"]


# --- checks that crash


@dg.asset(key=KEY)
def broken_weather() -> dg.MaterializeResult:
    """Its metadata hold records that no one can read, and its value is not stored."""
    unreadable = dg.MetadataValue.json({"schema": 99})
    records = ("dataset", "model_version", "deployment", "training_set")
    return dg.MaterializeResult(
        metadata={**{f"dagster_mlops/{role}": unreadable for role in records}, "mlflow/evaluation/result": unreadable}
    )


@pytest.mark.parametrize("name", [name for name in CHECKS if name != "divergence_checks"])  # reads no asset, no tool
def test_a_check_that_crashes_leaves_a_failed_evaluation(name, tmp_path):
    gone = str(tmp_path / "gone")
    made = _make(name)
    tool = FACTORIES[name].__module__.split(".")[1]
    with dg.DagsterInstance.ephemeral() as instance:
        done = dg.materialize(
            [broken_weather, *made],
            instance=instance,
            raise_on_error=False,
            resources={
                "bentoml": BentomlResource(home=gone, tracking_uri="http://127.0.0.1:9"),
                "dvc": DvcResource(repo=gone),
                "dvc_io_manager": dvc_io_manager,
                "evidently": EvidentlyResource(reports=gone),
                "feast": FeastResource(repo=gone),
                "kubernetes": KubernetesResource(kubeconfig=gone),
                "mlflow": MlflowResource(tracking_uri="http://127.0.0.1:9"),
            },
        )
        evaluations = {evaluation.check_name: evaluation for evaluation in done.get_asset_check_evaluations()}
    assert set(evaluations) == {spec.name for definition in made for spec in definition.check_specs}
    for evaluation in evaluations.values():
        assert not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.ERROR
        assert evaluation.description
        assert "Traceback" in str(evaluation.metadata[f"{tool}/error"].value)
        assert float(str(evaluation.metadata[f"{tool}/seconds"].value)) >= 0


def test_a_crash_tells_no_password_and_keeps_the_end_of_its_traceback():
    logged: list[str] = []

    def judge() -> dg.AssetCheckResult:
        raise OSError("x" * 9000 + " postgresql://ml:secret@db/mlflow")

    result = never_missing(judge, tool="mlflow", log=logged.append)
    told = f"{result.description} {result.metadata} {logged}"
    assert "secret" not in told and "postgresql://***@db/mlflow" in told
    assert len(str(result.metadata["mlflow/error"])) < 7000


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, dg.DagsterExecutionInterruptedError])
def test_an_interrupt_is_no_crash(interrupt):
    def judge() -> dg.AssetCheckResult:
        raise interrupt

    with pytest.raises(interrupt):
        never_missing(judge, tool="mlflow")


@pytest.mark.parametrize("name", FACTORIES)
def test_a_misspelt_option_is_blamed_on_the_factory_that_was_called(name):
    blame = rf"^{name}\(\) (takes no option|got an unexpected keyword argument) 'desription'"
    with pytest.raises(TypeError, match=blame) as refusal:
        _make(name, desription="x")
    if "takes no option" in str(refusal.value):
        assert "Did you mean 'description'?" in str(refusal.value)


def test_code_that_is_run_without_a_module_gets_the_same_blame():
    code = "make(candidate='a', registered_model_name='m', metric='auc', desription='x')"
    with pytest.raises(TypeError, match=r"^promotion_asset\(\) takes no option 'desription'"):
        exec(compile(code, "cell", "exec"), {"make": promotion_asset, "__builtins__": {}})
