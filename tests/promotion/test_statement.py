"""A deployment that asks for it serves only a version whose promotion is on record, signed, and of these files."""

from typing import Any

import dagster as dg
import pytest
from mlflow import MlflowClient

from dagster_mlops.errors import GateError
from dagster_mlops.promotion.history import envelope as envelopes
from dagster_mlops.promotion.history.envelope import new_key
from dagster_mlops.promotion.statement import require_statement
from dagster_mlops.provenance import Package
from dagster_mlops.serving import deployment_asset
from tests.support import known_warnings
from tests.support.promotions import MODEL, Promotions

pytestmark = [pytest.mark.usefixtures("warm_tools"), *known_warnings.MLFLOW]


@pytest.fixture
def world(tmp_path, monkeypatch):
    private, public = new_key()
    monkeypatch.setenv(envelopes.SIGNING_KEY, private)
    monkeypatch.setenv(envelopes.PUBLIC_KEYS, public)
    return Promotions(tmp_path / "world")


def package(world: Promotions, version: str, **changes: str) -> Package:
    with world.resource.models() as models:
        record = models.version(MODEL, version)
    facts: Any = {"tag": f"delay:{version}", "home": "/bentos", "model_name": MODEL, "model_version": version}
    return Package(**{**facts, "sha256": record.sha256, **changes}, upstream=(record.ref,))


def test_the_version_that_was_promoted_and_signed_is_served_and_no_other(world, monkeypatch):
    first, second = world.train(0.7), world.train(0.8)
    world.promote(first)
    assert require_statement(package(world, first), "champion").after == first
    with pytest.raises(GateError, match=r"is not 'champion' by its history: the last move is to version 1"):
        require_statement(package(world, second), "champion")
    with pytest.raises(GateError, match="no version was promoted to it"):
        require_statement(package(world, first), "staging")
    with pytest.raises(GateError, match="are not those that were promoted"):
        require_statement(package(world, first, sha256="ab" * 32), "champion")
    monkeypatch.setenv(envelopes.PUBLIC_KEYS, new_key()[1])
    monkeypatch.delenv(envelopes.SIGNING_KEY)
    with pytest.raises(GateError, match="no entry is signed by a key that you trust"):
        require_statement(package(world, first), "champion")
    monkeypatch.delenv(envelopes.PUBLIC_KEYS)
    with pytest.raises(GateError, match="Set DAGSTER_MLOPS_PUBLIC_KEYS"):
        require_statement(package(world, first), "champion")


@pytest.mark.thorough
def test_a_version_that_came_by_hand_is_not_served_though_a_promoter_has_signed_that(world):
    first, second, by_hand = world.train(0.7), world.train(0.8), world.train(0.9)
    for version in (first, second):
        world.promote(version)
    world.client.set_registered_model_alias(MODEL, "champion", by_hand)
    world.promote(second)  # it is no better, and writes down what was done by hand
    with pytest.raises(GateError, match=r"was by hand, without a gate"):
        require_statement(package(world, by_hand), "champion")
    assert world.json("rollback", MODEL, "--reason", "it came by hand")["after"] == second
    assert require_statement(package(world, second), "champion").kind == "rollback"
    world.client.set_registered_model_alias(MODEL, "champion", first)
    assert world.json("rollback", MODEL, "--reason", "it was fine", "--to", by_hand)["after"] == by_hand
    with pytest.raises(GateError, match=r"was rollback, without a gate"):
        require_statement(package(world, by_hand), "champion")


def test_a_history_that_was_changed_serves_nothing(world):
    version = world.train(0.7)
    world.promote(version)
    client: MlflowClient = world.client
    client.set_registered_model_tag(MODEL, "dagster_mlops.history_head", "forged")
    with pytest.raises(GateError, match="does not hold, so version 1 of 'arrival_delay' is not served"):
        require_statement(package(world, version), "champion")


def test_a_deployment_asks_before_anything_is_started(world, tmp_path):
    version = world.train(0.7)
    world.promote(version)
    record = package(world, version, sha256="ab" * 32)

    class Packager:
        """A packaging tool that is not asked for anything."""

        tool = "acme"

        def server(self, *arguments: object) -> object:
            raise AssertionError(arguments)

        golden = alias_version = server

    served = deployment_asset(
        package="bento", golden_set="golden", state_dir=tmp_path / "state", resource_key="tool", promoted_to="champion"
    )

    @dg.asset
    def bento() -> dg.MaterializeResult:
        return dg.MaterializeResult(metadata=record.to_metadata())

    @dg.asset
    def golden() -> list:
        return []

    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        resources = {"tool": dg.ResourceDefinition.hardcoded_resource(Packager())}
        result = dg.materialize([bento, golden, served], instance=instance, resources=resources, raise_on_error=False)
        [failure] = result.get_step_failure_events()
    assert "are not those that were promoted" in str(failure.step_failure_data.error)
    assert not (tmp_path / "state").exists()
