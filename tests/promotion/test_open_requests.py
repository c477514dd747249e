"""`dagster-mlops status` shows the promotions that wait for people, by their registry or, without it, by Dagster."""

import dataclasses
import json

import dagster as dg
import pytest

from dagster_mlops.promotion import Approval, promotion_asset
from dagster_mlops.promotion.approval import NOTE
from dagster_mlops.promotion.history.entry import read_entry
from dagster_mlops.promotion.history.envelope import SIGNING_KEY, STATEMENT, new_key, seal, trusted_keys
from dagster_mlops.promotion.open_requests import open_requests
from tests.support import known_warnings
from tests.support.promotions import MODEL, Promotions

pytestmark = [*known_warnings.MLFLOW, *known_warnings.DAGSTER_BETA]

ASKING = promotion_asset(
    candidate="delay_model",
    registered_model_name=MODEL,
    metric="auc",
    approval=Approval(people=2, approvers=["ann", "bob"]),
)


@pytest.fixture
def world(tmp_path):
    world = Promotions(tmp_path / "world")
    world.promote(world.train(0.7))
    world.promote(world.train(0.8), by=ASKING)
    return world


def test_status_shows_who_has_approved_and_how_to_approve_until_the_alias_moves(world):
    assert world.holder() == "1"
    screen = world.command("status").stdout
    assert f"{MODEL}/2" in screen and "dagster-mlops approve arrival_delay 2" in screen and "0 of 2" in screen
    [request] = world.json("status")["waiting"]
    assert (request["alias"], request["before"], request["verdict"]) == ("champion", "1", "waits")
    assert request["people"] == 2 and request["ends"] > request["since"] and request["problem"] == ""
    world.command("approve", MODEL, "--as", "ann")
    world.client.set_model_version_tag(MODEL, "2", NOTE, "eve: me too")
    [request] = world.json("status")["waiting"]
    assert request["approvals"] == ["ann"] and "1 of 2 so far" in request["state"]
    assert "eve may not approve this" in request["state"]
    world.client.set_model_version_tag(MODEL, "2", f"{NOTE}.2", "bob")
    [request] = world.json("status")["waiting"]
    assert request["verdict"] == "holds" and request["approvals"] == ["ann", "bob"]
    assert "the next run of champion acts on it" in " ".join(world.command("status").stdout.split())
    world.promote("2", by=ASKING)
    assert world.holder() == "2" and world.json("status")["waiting"] == []


@pytest.mark.thorough
def test_with_a_key_only_signed_approvals_are_counted_and_without_one_the_line_says_so(world, monkeypatch):
    monkeypatch.setenv(SIGNING_KEY, new_key()[0])
    world.command("approve", MODEL, "--as", "ann")
    with world.resource.models() as models:
        entry, _ = read_entry(models.history(MODEL)[2])
        forged = dataclasses.replace(entry, index=3, by="bob").statement()
        signatures = [{"keyid": next(iter(trusted_keys())), "sig": "e30="}]
        models.append(MODEL, 3, json.dumps({**json.loads(seal(STATEMENT, forged, None)), "signatures": signatures}))
    [request] = world.json("status")["waiting"]
    assert request["approvals"] == ["ann"] and request["verdict"] == "waits"
    monkeypatch.delenv(SIGNING_KEY)
    [request] = world.json("status")["waiting"]
    assert request["approvals"] == ["ann", "bob"] and "signatures are not verified" in request["state"]


@pytest.mark.thorough
def test_a_request_is_over_when_the_alias_was_moved_by_hand(world):
    world.client.set_registered_model_alias(MODEL, "champion", "2")
    assert world.json("status")["waiting"] == []


@pytest.mark.thorough
def test_status_says_what_dagster_has_when_the_registry_cannot_be_asked(world):
    world.command("approve", MODEL, "--as", "ann")
    world.file.rename(world.folder / "away.db")
    [request] = world.json("status")["waiting"]
    assert request["version"] == "2" and request["approvals"] == ["ann"]
    assert request["source"] == "Dagster's event log" and "is not on this machine" in request["problem"]
    assert "cannot be asked" in " ".join(world.command("status").stdout.split())


def test_no_registry_is_asked_where_nothing_waits():
    with dg.DagsterInstance.ephemeral() as instance:
        instance.report_runless_asset_event(dg.AssetMaterialization("model"))
        assert open_requests(instance) == []
