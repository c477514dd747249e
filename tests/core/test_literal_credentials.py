"""A credential that is written into a resource, in place of an `EnvVar`, is warned of when definitions load."""

import warnings

import dagster as dg
import pytest

from dagster_mlops.bentoml import BentomlResource
from dagster_mlops.dvc import DvcResource, imported_url_asset
from dagster_mlops.feast import FeastResource, feature_server_health_check
from dagster_mlops.lineage import reproduction_asset
from dagster_mlops.mlflow import MlflowResource, sweep_asset, sweep_trials
from dagster_mlops.mlflow_serving import MlflowServingResource

SECRET = "Xy7-hidden"
URI = f"postgresql://ml:{SECRET}@db/mlflow"

LITERALS = [
    ("tracking_uri of MlflowResource", "MLFLOW_TRACKING_URI", lambda: MlflowResource(tracking_uri=URI)),
    ("registry_uri of MlflowResource", "MLFLOW_REGISTRY_URI", lambda: MlflowResource(registry_uri=URI)),
    ("remote_url of DvcResource", "DVC_REMOTE_URL", lambda: DvcResource(repo=".", remote_url=URI)),
    ("tracking_uri of BentomlResource", "BENTOML_TRACKING_URI", lambda: BentomlResource(tracking_uri=URI)),
    (
        "tracking_uri of MlflowServingResource",
        "MLFLOWSERVING_TRACKING_URI",
        lambda: MlflowServingResource(home=".", tracking_uri=URI),
    ),
    ("remote_config['url'] of DvcResource", "NAME", lambda: DvcResource(repo=".", remote_config={"url": URI})),
    (
        "offline_store['connection']['dsn'] of FeastResource",
        "NAME",
        lambda: FeastResource(repo=".", offline_store={"type": "postgres", "connection": {"dsn": URI}}),
    ),
]


SWEEP = {"registered_model_name": "m", "metric": "auc", "direction": "maximize", "n_trials": 1}
SERVER = {"asset": "a", "feature_service": "s", "entities": {"k": [1]}}
LITERALS += [
    ("storage of sweep_asset", "SWEEP_ASSET_STORAGE", lambda: sweep_asset(**SWEEP, storage=URI)),
    ("storage of sweep_trials", "SWEEP_TRIALS_STORAGE", lambda: sweep_trials(**SWEEP, name="s", storage=URI)),
    (
        "tracking_uri of reproduction_asset",
        "REPRODUCTION_ASSET_TRACKING_URI",
        lambda: reproduction_asset(training="m/1", tracking_uri=URI),
    ),
    (
        "url of feature_server_health_check",
        "FEATURE_SERVER_HEALTH_CHECK_URL",
        lambda: feature_server_health_check(**SERVER, url=URI),
    ),
    (
        "token of feature_server_health_check",
        "FEATURE_SERVER_HEALTH_CHECK_TOKEN",
        lambda: feature_server_health_check(**SERVER, url="http://features", token=SECRET),
    ),
    (
        "options['password'] of imported_url_asset",
        "NAME",
        lambda: imported_url_asset(path="a", url="https://host/a", options={"password": SECRET}),
    ),
]


@pytest.mark.parametrize(("place", "variable", "make"), LITERALS)
def test_a_literal_is_warned_of_by_field_and_fix_without_its_value(place, variable, make):
    with pytest.warns(UserWarning) as caught:
        make()
    [warning] = [str(entry.message) for entry in caught]
    assert warning.startswith(place) and f'dg.EnvVar("{variable}")' in warning and SECRET not in warning


@pytest.mark.parametrize("option", ["secret_access_key", "password", "sas_token"])
def test_an_option_that_is_secret_by_its_name_is_warned_of(option):
    with pytest.warns(UserWarning, match=option):
        DvcResource(repo=".", remote_config={option: SECRET, "endpointurl": "https://store"})


def test_a_variable_is_not_warned_of_neither_at_load_nor_in_a_step(monkeypatch):
    monkeypatch.setenv("PRIVATE_URI", URI)
    monkeypatch.setenv("PRIVATE_KEY", SECRET)
    values = []

    @dg.asset
    def reads(mlflow: MlflowResource, dvc: DvcResource) -> None:
        values.extend([mlflow.uri, dvc.config()["remote"]["storage"]["secret_access_key"]])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = {"secret_access_key": dg.EnvVar("PRIVATE_KEY")}
        mlflow = MlflowResource(tracking_uri=dg.EnvVar("PRIVATE_URI"))
        dvc = DvcResource(repo=".", remote_url="s3://ml-data/dvc", remote_config=options)
        warnings.filterwarnings("ignore", category=dg.BetaWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        assert dg.materialize([reads], resources={"mlflow": mlflow, "dvc": dvc}).success
    assert values == [URI, SECRET]


@pytest.mark.parametrize(
    "uri", ["sqlite:///mlflow.db", "http://mlflow:5000", "databricks://team", "s3://bucket/rows@v1"]
)
def test_an_address_without_a_password_is_not_warned_of(uri):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MlflowResource(tracking_uri=uri)
