"""Numbers are given anew once a model was deleted, and each registry counts from 1: files and runs tell them apart."""

from typing import Any

import dagster as dg
import pytest

from dagster_mlops.core.model_digest import model_digest
from dagster_mlops.core.model_versions import version_of
from dagster_mlops.errors import ModelVersionError
from dagster_mlops.mlflow.runs.lookup import RECORD
from dagster_mlops.promotion import Approval, AtLeast, model_copy_asset, promotion_asset
from dagster_mlops.promotion.history.log import moves_of
from dagster_mlops.provenance import ModelVersion, Ref
from tests.support import known_warnings
from tests.support.promotions import CHAMPION, MODEL, Promotions, promoted

pytestmark = [*known_warnings.MLFLOW, *known_warnings.DAGSTER_BETA]
ASKING = promotion_asset(
    candidate="delay_model", registered_model_name=MODEL, metric="auc", approval=Approval(people=1)
)


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return promoted(tmp_path_factory.mktemp("template"), 0.5, 0.7)


@pytest.fixture
def world(template):
    yield template
    template.reset()


def new_model(world: Promotions, *aucs: float) -> list[str]:
    """The versions of a new model with the name of the one that is deleted."""
    world.client.delete_registered_model(MODEL)
    world.client.create_registered_model(MODEL)
    return [world.train(auc) for auc in aucs]


def moves(world: Promotions) -> list[tuple[str, str]]:
    with world.resource.models() as models:
        return [(move.kind, move.after) for move in moves_of(models, MODEL, "champion")]


def outcome_of(world: Promotions, asset: dg.AssetsDefinition, **resources: Any) -> str:
    """The text of the error with which an asset fails."""
    with world.instance() as instance:
        assets = [dg.AssetSpec("delay_model"), asset]
        [failure] = dg.materialize(
            assets, selection=[asset], instance=instance, raise_on_error=False, resources=resources
        ).get_step_failure_events()
        return str(failure.step_failure_data.error)


def test_a_version_is_not_that_of_another_registry_with_its_number(world, tmp_path):
    other = Promotions(tmp_path / "other")
    for auc in (0.1, 0.2, 0.9):
        version = other.train(auc)
    other.client.set_registered_model_alias(MODEL, "champion", "1")
    made = dg.AssetMaterialization("delay_model", metadata=world.record(world.train(0.8)).to_metadata())
    with world.instance() as instance:
        instance.report_runless_asset_event(made)
    copy = model_copy_asset(
        name="copy", registered_model_name=MODEL, source="source", registry="mlflow", candidate="delay_model"
    )
    for asset in (CHAMPION, copy):
        error = outcome_of(world, asset, mlflow=other.resource, source=other.resource)
        assert f"version {version} of '{MODEL}' in {other.uri} is not the one that was made: its run is" in error
    assert other.holder() == "1"


def test_one_commit_in_common_is_enough():
    """In git, the bare record of a version names its commit alone, where its training may have read others."""

    def version(*commits: str) -> ModelVersion:
        upstream = tuple(Ref("git", "commit", commit, at="/repo") for commit in commits)
        return ModelVersion(tool="gto", name=MODEL, version="v1.0.0", tracking_uri="/repo", upstream=upstream)

    class Tags:
        """A registry in git with one version."""

        def __init__(self, record: ModelVersion) -> None:
            self.record = record

        def version(self, name: str, which: str) -> ModelVersion:
            return self.record

    bare: Any = Tags(version("b" * 40))
    assert version_of(bare, version("a" * 40, "b" * 40)) is bare.record
    with pytest.raises(ModelVersionError, match="its commit is bbb"):
        version_of(bare, version("a" * 40))


def test_an_approval_is_of_files_and_not_of_a_number(world):
    version = world.train(0.8)
    assert world.promote(version, by=ASKING)["mlflow/promoted"] is False
    files = world.files(version) / "model.json"
    files.write_text('{"auc": 0.1}')
    replaced = world.record(version, sha256=model_digest(files.parent))
    assert world.command("approve", MODEL, "--as", "ann").exit_code == 0
    world.client.set_model_version_tag(MODEL, version, RECORD, replaced.to_json())
    assert world.json("status")["waiting"] == []
    refused = world.command("approve", MODEL, "--as", "bob")
    assert refused.exit_code == 2 and "has other files than those of the request" in refused.stderr.replace("\n", " ")
    assert world.promote(version, by=ASKING)["mlflow/promoted"] is False and world.holder() == "2"
    assert world.command("approve", MODEL, "--as", "ann").exit_code == 0
    assert world.promote(version, by=ASKING)["mlflow/promoted"] is True and world.holder() == version


def test_a_rollback_returns_to_no_version_that_has_only_the_number_of_an_earlier_one(world):
    *_, third = new_model(world, 0.1, 0.2, 0.3)
    world.client.set_registered_model_alias(MODEL, "champion", third)
    for arguments in ((), ("--to", "2")):
        refused = world.command("rollback", MODEL, "--reason", "late", *arguments)
        assert refused.exit_code == 2 and "held 'champion'" in refused.stderr.replace("\n", " "), refused.output
    assert world.holder() == third


@pytest.mark.thorough
def test_a_version_in_the_place_of_the_champion_counts_as_a_move_by_hand(world):
    first, second = new_model(world, 0.1, 0.2)
    world.client.set_registered_model_alias(MODEL, "champion", second)
    assert world.promote(first)["mlflow/promoted"] is False
    assert moves(world)[-1] == ("by hand", second)
    assert "was replaced in the registry" in world.json("history", MODEL)["moves"][-1]["why"]


@pytest.mark.thorough
def test_a_promotion_whose_version_was_deleted_was_made(tmp_path):
    world = promoted(tmp_path / "world", 0.7)
    [version] = new_model(world, 0.1)  # with it went the alias, and the tag with the head
    strict = promotion_asset(
        candidate="delay_model", registered_model_name=MODEL, rules=[AtLeast(metric="auc", limit=0.9)]
    )
    with world.instance() as instance:
        made = dg.AssetMaterialization("delay_model", metadata=world.record(version).to_metadata())
        instance.report_runless_asset_event(made)
    assert "is not at least 0.9" in outcome_of(world, strict, mlflow=world.resource)
    assert moves(world) == [("promotion", "1"), ("by hand", "")]


@pytest.mark.thorough
def test_a_rollback_from_a_number_does_not_hold_against_other_files(world):
    assert world.command("rollback", MODEL, "--reason", "late").exit_code == 0
    _, second = new_model(world, 0.1, 0.9)
    world.client.set_registered_model_alias(MODEL, "champion", "1")
    assert world.promote(second)["mlflow/promoted"] is True and world.holder() == second
