"""A model of one name in two registries under one Dagster instance has two histories, which are told apart."""

import json
import shutil
import sqlite3
from contextlib import closing
from typing import Any

import dagster as dg
import pytest

from dagster_mlops.mlflow import promotion_asset
from dagster_mlops.mlflow.registry.history import HEAD
from dagster_mlops.promotion.history.entry import PROMOTION
from dagster_mlops.promotion.history.log import History
from tests.support import known_warnings
from tests.support.promotions import MODEL, Promotions, promoted

pytestmark = [*known_warnings.MLFLOW, *known_warnings.DAGSTER_BETA]
STAGING = promotion_asset(candidate="delay_model", registered_model_name=MODEL, metric="auc", name="staging")


def promote_elsewhere(world: Promotions, other: Promotions, version: str) -> None:
    """Promote a version of another registry, by an asset of its own, in the Dagster instance of `world`."""
    made = dg.AssetMaterialization("delay_model", metadata=other.record(version).to_metadata())
    with world.instance() as instance:
        instance.report_runless_asset_event(made)
        assets, resources = [dg.AssetSpec("delay_model"), STAGING], {"mlflow": other.resource}
        assert dg.materialize(assets, selection=[STAGING], instance=instance, resources=resources).success


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Two versions promoted in one registry, and one in another, both in the Dagster instance of the first one."""
    folder = tmp_path_factory.mktemp("two")
    world, other = promoted(folder / "one", 0.70, 0.75), Promotions(folder / "other")
    promote_elsewhere(world, other, other.train(0.6))
    shutil.rmtree(folder / "one-saved")
    world.save()
    return world, other


@pytest.fixture
def two(template):
    world, other = template
    yield world, other
    world.reset()


def verified(world: Promotions, place: str) -> dict[str, Any]:
    return world.json("history", "verify", MODEL, "--registry", place)


@pytest.fixture
def link(two):
    """Another address of the first registry."""
    path = two[0].folder.parent / "link.db"
    path.symlink_to(two[0].file)
    yield f"sqlite:///{path}"
    path.unlink()


def test_each_history_is_verified_by_itself_at_whatever_address(two, link):
    world, other = two
    for place, size in ((world.uri, 2), (other.uri, 1), (link, 2)):
        answer = verified(world, place)
        assert answer["holds"] and answer["entries"] == size and "event log" in answer["strength"], place


def test_a_history_that_was_replaced_as_a_whole_is_found_at_its_address_and_at_another_one(two, link):
    world, _ = two
    with closing(sqlite3.connect(world.file)) as database:
        database.execute("delete from params where key like '0000000%'")
        database.commit()
    world.client.delete_registered_model_tag(MODEL, HEAD)
    with world.resource.models() as models:
        forged = History(models, models, MODEL)
        forged.append(PROMOTION, "champion", "", "2", by="eve", why="forged", facts={})
        forged.confirm()
    assert {finding["entry"] for finding in verified(world, world.uri)["findings"]} >= {0, 1}
    [finding] = verified(world, link)["findings"]
    assert "its history was replaced" in finding["problem"]


@pytest.mark.thorough
def test_a_registry_in_which_no_promotion_of_this_dagster_was_is_one_finding(two, tmp_path):
    world, _ = two
    third = Promotions(tmp_path / "third")
    third.promote(third.train(0.5))
    [finding] = verified(world, third.uri)["findings"]
    assert finding["entry"] is None and "no entry of this history" in finding["problem"] and world.uri in str(finding)


@pytest.mark.parametrize(
    "command",
    [["rollback", "--reason", "late"], ["approve"], ["history", "restore"], ["history", "verify"], ["history"]],
)
def test_without_a_place_a_command_acts_on_neither_and_lists_both(two, command):
    world, other = two
    name, *options = command if command[0] != "history" else [" ".join(command)]
    refused = world.command(*name.split(), MODEL, *options)
    told = refused.stderr.replace("\n", "")
    assert refused.exit_code == 2 and world.uri in told and other.uri in told and "--registry PLACE" in told
    assert world.holder() == "2" and other.holder() == "1"


def test_a_rollback_and_a_restored_event_log_reach_their_own_asset_only(two):
    world, other = two
    options = ["--reason", "late", "--registry", world.uri]
    assert json.loads(world.command("rollback", MODEL, *options, "--json").stdout)["asset"] == "champion"
    assert verified(world, world.uri)["holds"] and verified(world, other.uri)["holds"] and other.holder() == "1"
    written = world.json("history", "restore", MODEL, "--registry", other.uri)["written"]
    assert [*written.values()] == [[], []]


@pytest.mark.thorough
def test_parts_of_an_earlier_version_stay_readable(two, monkeypatch):
    from dagster_mlops.promotion.history import event_log

    world, other = two
    part_metadata = event_log.part_metadata
    older = {"model", "first", "entries", "head"}
    monkeypatch.setattr(
        event_log, "part_metadata", lambda tool, part: part_metadata(tool, {k: part[k] for k in part if k in older})
    )
    world.promote(world.train(0.8))
    monkeypatch.undo()
    assert verified(world, world.uri)["holds"] and verified(world, other.uri)["holds"]
    world.promote(world.train(0.9))
    assert verified(world, world.uri)["entries"] == 4 and verified(world, world.uri)["holds"]
