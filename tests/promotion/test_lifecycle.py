"""The aliases beside the promoted one follow its history, whatever happens to a promotion, and stop none."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import dagster as dg
import pytest
from dagster.components.testing import create_defs_folder_sandbox

from dagster_mlops.errors import HistoryError, ModelVersionError
from dagster_mlops.mlflow import AtLeast, MlflowResource
from dagster_mlops.mlflow.registry.models import MlflowModels
from dagster_mlops.mlflow.runs.lookup import RECORD
from dagster_mlops.promotion import Approval, Lifecycle, PromotionComponent, promotion_asset
from dagster_mlops.promotion import approval as approvals
from dagster_mlops.promotion.author import Author
from dagster_mlops.promotion.case import Case
from dagster_mlops.promotion.decisions import decide
from dagster_mlops.promotion.gate import Gate
from dagster_mlops.promotion.history.entry import APPROVAL, REJECTION
from dagster_mlops.promotion.history.log import moves_of
from dagster_mlops.promotion.moves import promote_version
from dagster_mlops.promotion.pointers import require_aliases
from dagster_mlops.promotion.rollback import lift, roll_back
from dagster_mlops.promotion.rules.improvement import Improvement
from dagster_mlops.promotion.sources import Sources
from dagster_mlops.provenance import ModelVersion
from tests.support import known_warnings, pages

pytestmark = [pytest.mark.usefixtures("warm_tools"), *known_warnings.MLFLOW, *known_warnings.DAGSTER_BETA]
ALL = Lifecycle(candidate="candidate", challenger="challenger", previous="previous")
PREVIOUS = Lifecycle(previous="previous")


class Killed(BaseException):
    """Stands for the end of a process."""


@pytest.fixture
def models(tmp_path, empty_database):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    resource = MlflowResource(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    client = resource.client()
    client.create_registered_model("delay")
    for auc in (0.6, 0.7, 0.8, 0.9):
        run = client.create_run("0")
        client.log_metric(run.info.run_id, "auc", auc)
        client.create_model_version("delay", "/models/delay", run.info.run_id)
    return MlflowModels(resource, client)


def promote(
    models: MlflowModels, version: str, approval: Approval | None = None, lifecycle: Lifecycle | None = PREVIOUS
) -> bool:
    candidate = models.version("delay", version)
    judge = Gate([Improvement(metric="auc")], Case(models, candidate)).judge
    options: Any = {"approval": approval, "lifecycle": lifecycle}
    return promote_version(models, candidate, "champion", judge, Author("test"), **options).promoted


def step_back(models: MlflowModels, step: Callable[..., Any] = roll_back, *arguments: str) -> None:
    place = models.resource.uri
    step(Sources("delay", "mlflow", place, None, ()), "champion", *arguments, reason="bad", author=Author("ann"))


def aliases(models: MlflowModels) -> dict[str, str]:
    return {name: str(version) for name, version in models.client.get_registered_model("delay").aliases.items()}


def test_by_default_nothing_is_set_beside_the_promoted_alias(models):
    models.client.set_registered_model_alias("delay", "previous", "4")  # a user's own
    assert promote(models, "1", lifecycle=None) and promote(models, "2", lifecycle=None)
    step_back(models)
    assert aliases(models) == {"champion": "1", "previous": "4"}


def test_previous_is_what_a_rollback_returns_to(models):
    assert promote(models, "1")
    assert aliases(models) == {"champion": "1"}, "the first model has none before it"
    assert promote(models, "2") and promote(models, "3")
    assert aliases(models) == {"champion": "3", "previous": "2"}
    assert not promote(models, "1"), "it is worse"
    assert aliases(models) == {"champion": "3", "previous": "2"}
    step_back(models)
    assert aliases(models) == {"champion": "2", "previous": "1"}, "the version that was left is not a way back"
    step_back(models, lift, "3")
    assert aliases(models)["previous"] == "3"
    models.client.delete_registered_model_alias("delay", "previous")
    models.client.set_registered_model_alias("delay", "champion", "1")
    assert not promote(models, "1")
    assert aliases(models) == {"champion": "1", "previous": "2"}, "it follows moves by hand, and comes back"
    models.client.delete_model_version("delay", "2")
    assert not promote(models, "1")
    assert aliases(models) == {"champion": "1", "previous": "3"}, "a version that was deleted is not a way back"


def test_a_challenger_waits_for_people_and_no_longer(models, monkeypatch):
    waits = Approval(people=1, approvers=["ann"], valid_days=1)
    assert promote(models, "1", lifecycle=ALL)
    assert not promote(models, "2", waits, ALL)
    assert aliases(models) == {"champion": "1", "challenger": "2"}
    assert not promote(models, "3", waits, ALL)
    assert aliases(models)["challenger"] == "3", "the last that was asked for"
    with pytest.raises(HistoryError, match="'zoe' is not one of the approvers"):
        decide(models, "delay", REJECTION, by="zoe", version="3")
    assert not promote(models, "3", waits, ALL)
    assert aliases(models)["challenger"] == "3", "zoe has no say"
    decide(models, "delay", REJECTION, by="ann", version="3")
    assert not promote(models, "3", waits, ALL)
    assert aliases(models)["challenger"] == "2", "its request is open as before"

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(days=2)

    with monkeypatch.context() as patch:
        patch.setattr(approvals, "datetime", Later)
        assert not promote(models, "1", waits, ALL)
        assert aliases(models) == {"champion": "1"}, "a request ends"
    assert not promote(models, "2", waits, ALL)
    decide(models, "delay", APPROVAL, by="ann", version="2")
    assert promote(models, "2", waits, ALL)
    assert aliases(models) == {"champion": "2", "previous": "1"}
    assert not promote(models, "4", waits, ALL)
    assert aliases(models)["challenger"] == "4"
    step_back(models)
    assert aliases(models) == {"champion": "1"}, "a move ends each request, and version 2 is not a way back"


@pytest.mark.parametrize("heals_by", ["promotion", "rollback"])
def test_a_promoter_that_is_killed_between_the_move_and_the_pointers_is_healed(models, monkeypatch, heals_by):
    promote(models, "1", lifecycle=ALL)
    promote(models, "2", lifecycle=ALL)

    def die(*arguments: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(MlflowModels, "set_alias", die)
        with pytest.raises(Killed):
            promote(models, "3", lifecycle=ALL)
    models.client.set_registered_model_alias("delay", "candidate", "3")  # as it was before the move
    assert aliases(models) == {"champion": "3", "previous": "1", "candidate": "3"}
    if heals_by == "promotion":
        assert not promote(models, "3", lifecycle=ALL)
        assert aliases(models) == {"champion": "3", "previous": "2"}
    else:
        step_back(models)
        assert aliases(models) == {"champion": "2", "previous": "1"}


def test_a_pointer_that_cannot_be_set_stops_no_promotion(models, monkeypatch, caplog):
    def refuse(*arguments: object) -> None:
        raise OSError("no space left")

    assert promote(models, "1")
    monkeypatch.setattr(MlflowModels, "set_alias", refuse)
    assert promote(models, "2")
    assert aliases(models) == {"champion": "2"}
    step_back(models)
    assert aliases(models) == {"champion": "1"}
    assert [move.after for move in moves_of(models, "delay", "champion")] == ["1", "2", "1"]


def test_an_alias_to_which_versions_are_promoted_is_left_alone(models):
    other = models.version("delay", "4")
    judge = Gate([Improvement(metric="auc")], Case(models, other)).judge
    promote_version(models, other, "previous", judge, Author("test"))
    assert promote(models, "1") and promote(models, "2")
    assert aliases(models) == {"champion": "2", "previous": "4"}


def test_two_promoters_at_once_leave_them_right(models):
    promote(models, "1")

    with ThreadPoolExecutor(2) as pool:
        assert any(pool.map(lambda version: promote(models, version), ["2", "3"]))
    moves = moves_of(models, "delay", "champion")
    assert aliases(models) == {"champion": "3", "previous": moves[-1].before}


def test_while_a_run_judges_a_version_it_is_the_candidate(world):
    seen = []

    class Look:
        name = "a rule that looks"

        def judge(self, case: Case) -> list:
            registered = world.client.get_registered_model("delay").aliases
            seen.append({name: str(version) for name, version in registered.items()})
            return AtLeast(metric="auc", limit=0.7).judge(case)  # pyright: ignore[reportReturnType]

    world.train(auc=0.8)
    options: Any = {"lifecycle": Lifecycle(candidate="candidate", previous="previous")}
    world.materialize(Look(), **options)
    assert seen == [{"candidate": "1"}]
    world.train(auc=0.6)
    assert world.materialize(Look(), **options)["mlflow/promoted"] is False
    assert seen[-1] == {"champion": "1", "candidate": "2"}
    assert world.client.get_registered_model("delay").aliases == {"champion": 1}, "a refused one is a candidate no more"


@pytest.mark.parametrize(
    ("lifecycle", "words"),
    [
        ({}, "names no alias"),
        ({"previous": "champion"}, "this is the promoted alias already"),
        ({"previous": "Champion"}, "this is the promoted alias already"),
        ({"candidate": "next", "previous": "next"}, "this is the candidate already"),
        ({"previous": "latest"}, "not an alias that MLflow accepts"),
        ({"candidate": "v1"}, "not an alias that MLflow accepts"),
        ({"previous": "a b"}, "not an alias that MLflow accepts"),
        ({"challenger": "challenger"}, "without approval= none ever does"),
    ],
)
def test_an_alias_that_cannot_be_is_refused_when_definitions_load(lifecycle, words):
    base: Any = {"candidate": "model", "registered_model_name": "delay", "metric": "auc"}
    with pytest.raises(dg.DagsterInvalidDefinitionError, match=words):
        promotion_asset(**base, lifecycle=Lifecycle(**lifecycle))
    document = {"type": "dagster_mlops.mlflow.PromotionComponent", "attributes": {**base, "lifecycle": lifecycle}}
    with create_defs_folder_sandbox() as sandbox, pytest.raises(Exception) as caught:
        path = sandbox.scaffold_component(component_cls=PromotionComponent, defs_yaml_contents=document)
        with sandbox.load_component_and_build_defs(path):
            pass
    messages, error = [], caught.value
    while error:
        messages.append(str(error))
        error = error.__cause__
    assert words in "\n".join(messages)


def test_the_examples_on_the_page_are_definitions():
    names = pages.names(*pages.blocks("promotion.md", "python", after="## The lifecycle"))
    assert names["champion"].dependency_keys == {names["challenger"].key}
    document = pages.document("promotion.md", after="## The lifecycle")
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(component_cls=PromotionComponent, defs_yaml_contents=document)
        with sandbox.load_component_and_build_defs(path) as (_, defs):
            keys = {asset.key.to_user_string() for asset in defs.assets or () if isinstance(asset, dg.AssetsDefinition)}
    assert keys == {"champion", "champion_approval"}


def test_a_registry_that_removes_no_alias_refuses_them_before_it_judges():
    class Tags:
        """As GTO is."""

        tool = "gto"

    registry: Any = Tags()
    with pytest.raises(ModelVersionError, match="'gto' has no aliases that can be set and removed"):
        require_aliases(registry)


@pytest.mark.thorough
def test_a_promotion_whose_candidate_is_another_promotion(world):
    """A version comes to `champion` by way of `challenger`: each alias has a gate, checks and entries of its own."""
    parts = dg.StaticPartitionsDefinition(["north", "south"])
    model = dg.AssetSpec("model", partitions_def=parts)
    base: Any = {"registered_model_name": "delay"}
    challenger = promotion_asset(
        candidate="model", alias="challenger", name="challenger", rules=[AtLeast(metric="auc", limit=0.7)], **base
    )
    champion = promotion_asset(candidate=challenger, metric="auc", **base)
    passes = [True]  # of the check between them

    @dg.asset_check(asset=challenger, blocking=True)
    def tried_by_people() -> dg.AssetCheckResult:
        return dg.AssetCheckResult(passed=passes[0])

    def run(selection: Any) -> dg.ExecuteInProcessResult:
        assets = [model, challenger, champion, tried_by_people]
        return dg.materialize(
            assets, instance=world.instance, resources={"mlflow": world.resource}, selection=selection,
            raise_on_error=False,
        )  # fmt: skip

    def train(auc: float) -> str:
        run_id = world.client.create_run("0").info.run_id
        world.client.log_metric(run_id, "auc", auc)
        version = str(world.client.create_model_version("delay", "/models/delay", run_id).version)
        made = {"dagster_asset": "model", "dagster_partition": "north", "tracking_uri": world.resource.uri}
        record = ModelVersion(name="delay", version=version, run_id=run_id, **made)
        world.client.set_model_version_tag("delay", version, RECORD, record.to_json())
        event = dg.AssetMaterialization("model", metadata=record.to_metadata(), partition="north")
        world.instance.report_runless_asset_event(event)
        return version

    def holders() -> dict[str, str]:
        registered = world.client.get_registered_model("delay").aliases
        return {name: str(version) for name, version in registered.items()}

    train(0.8)
    both = dg.AssetSelection.assets(challenger, champion)
    assert run(both).success
    assert holders() == {"challenger": "1", "champion": "1"}
    train(0.75)
    assert run(both).success
    assert holders() == {"challenger": "2", "champion": "1"}, "good enough to be tried, and not better"
    train(0.9)
    passes[0] = False
    assert not run(both).success
    assert holders() == {"challenger": "3", "champion": "1"}
    passes[0] = True
    assert run(both).success
    assert holders() == {"challenger": "3", "champion": "3"}
    versions = {
        key.to_user_string(): (event.asset_materialization.tags or {})["dagster/data_version"]
        for key in (challenger.key, champion.key)
        if (event := world.instance.get_latest_materialization_event(key)) and event.asset_materialization
    }
    assert versions == {"challenger": "delay/3", "champion": "delay/3"}
    with world.resource.models() as models:
        paths = {
            alias: [move.after for move in moves_of(models, "delay", alias)] for alias in ("challenger", "champion")
        }
    assert paths == {"challenger": ["1", "2", "3"], "champion": ["1", "3"]}


def test_no_version_gets_the_alias_of_another_gate_by_a_lifecycle(models):
    waiting = Lifecycle(challenger="staging")
    promote(models, "1")
    promote(models, "2", Approval(), waiting)
    assert models.version("delay", "@staging").version == "2"
    candidate = models.version("delay", "2")
    judge = Gate([AtLeast(metric="auc", limit=0.99)], Case(models, candidate)).judge
    with pytest.raises(ModelVersionError, match="by the lifecycle of 'champion', and no gate has judged"):
        promote_version(models, candidate, "staging", judge, Author("ann"))
    models.set_alias("delay", "staging", "")
    assert promote_version(models, candidate, "staging", judge, Author("ann")).promoted is False
