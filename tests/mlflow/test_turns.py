"""Promoters of a model take turns: of two at once, the better version ends as champion, and the moves are true."""

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest

from dagster_mlops.errors import ModelVersionError
from dagster_mlops.mlflow import MlflowResource
from dagster_mlops.mlflow.registry.models import MlflowModels
from dagster_mlops.mlflow.registry.turns import TURN, turn
from dagster_mlops.promotion import Improvement
from dagster_mlops.promotion.author import Author
from dagster_mlops.promotion.case import Case
from dagster_mlops.promotion.gate import Gate
from dagster_mlops.promotion.history.log import moves_of
from dagster_mlops.promotion.moves import promote_version
from tests.support import known_warnings
from tests.support.mlflow_processes import PRELOADED, SERVER

pytestmark = [pytest.mark.usefixtures("warm_tools"), *known_warnings.MLFLOW]


@pytest.fixture
def resource(tmp_path, empty_database):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return MlflowResource(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")


def model(client: Any, name: str, *values: float, champion: str = "1") -> None:
    """A registered model with a version for each AUC."""
    client.create_registered_model(name)
    for value in values:
        run = client.create_run("0")
        client.log_metric(run.info.run_id, "auc", value)
        client.create_model_version(name, f"/models/{name}", run.info.run_id)
    if champion:
        client.set_registered_model_alias(name, "champion", champion)


def promote_each(models: MlflowModels | str, version: str, rounds: int, barrier: Any) -> None:
    if isinstance(models, str):
        resource = MlflowResource(tracking_uri=models)
        models = MlflowModels(resource, resource.client())
    for number in range(rounds):
        candidate = models.version(f"model{number}", version)
        barrier.wait()
        judge = Gate([Improvement(metric="auc")], Case(models, candidate)).judge
        promote_version(models, candidate, "champion", judge, Author(f"run of {version}"))


@pytest.mark.parametrize(
    ("kind", "rounds"),
    [(threading, 3), pytest.param(SERVER, 100, marks=pytest.mark.thorough)],
    ids=["threads", "processes"],
)
def test_of_two_promoters_at_once_the_better_version_ends_as_champion(resource, kind, rounds):
    client = resource.client()
    champions = ["" if number % 2 else "1" for number in range(rounds)]
    for number, before in enumerate(champions):
        model(client, f"model{number}", 0.7, 0.8, 0.9, champion=before)
    SERVER.set_forkserver_preload(PRELOADED)
    models = MlflowModels(resource, client)
    make, shared = (kind.Thread, models) if kind is threading else (kind.Process, resource.tracking_uri)
    barrier = kind.Barrier(2)
    promoters = [make(target=promote_each, args=(shared, version, rounds, barrier)) for version in ("2", "3")]
    for promoter in promoters:
        promoter.start()
    for promoter in promoters:
        promoter.join(300)
        assert getattr(promoter, "exitcode", 0) == 0
    for number, before in enumerate(champions):
        name = f"model{number}"
        assert str(client.get_model_version_by_alias(name, "champion").version) == "3"
        history = [(move.before, move.after) for move in moves_of(models, name, "champion")]
        assert history in ([(before, "3")], [(before, "2"), ("2", "3")]), (
            "each move left the version that held the alias"
        )
        assert not [tag for tag in client.get_registered_model(name).tags if tag.startswith(TURN)]


def hold(uri: str, entered: str) -> None:
    with turn(MlflowResource(tracking_uri=uri).client(), "delay", lease_s=3):
        Path(entered).touch()
        time.sleep(60)


@pytest.mark.thorough
def test_the_turn_of_a_killed_promoter_ends_with_its_lease(resource, tmp_path):
    client = resource.client()
    model(client, "delay", 0.7)
    SERVER.set_forkserver_preload(PRELOADED)
    process = SERVER.Process(target=hold, args=(resource.tracking_uri, str(tmp_path / "entered")))
    process.start()
    while not (tmp_path / "entered").exists():
        time.sleep(0.02)
    busy = pytest.raises(ModelVersionError, match="is promoting a version of 'delay' and does not finish")
    with busy, turn(client, "delay", lease_s=3, timeout_s=0.2):
        raise AssertionError("the other one is at it")
    process.kill()
    process.join()
    with turn(client, "delay", lease_s=3):
        assert len([tag for tag in client.get_registered_model("delay").tags if tag.startswith(TURN)]) == 1
    assert not client.get_registered_model("delay").tags


@pytest.mark.parametrize("value", ["", "[]", "{}", "ticket", '{"ticket": 0, "until": 99999999999999, "by": "eve"}'])
def test_a_tag_that_anyone_may_set_stops_no_promotion(resource, value):
    client = resource.client()
    model(client, "delay", 0.7)
    client.set_registered_model_tag("delay", f"{TURN}eve", value)
    with turn(client, "delay", timeout_s=1):
        pass
    assert mlflow.MlflowClient is type(client) and not client.get_registered_model("delay").tags
