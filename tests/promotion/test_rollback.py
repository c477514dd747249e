"""A rollback is one step to the version before; it holds against automation until a person lifts it."""

import dagster as dg
import pytest

from dagster_mlops.mlflow.registry.models import MlflowModels
from dagster_mlops.promotion.history.entry import ROLLBACK
from dagster_mlops.promotion.history.log import History
from tests.support import known_warnings
from tests.support.promotions import CHAMPION, MODEL, full, promoted

pytestmark = [*known_warnings.MLFLOW, *known_warnings.DAGSTER_BETA]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return promoted(tmp_path_factory.mktemp("template"), 0.70, 0.75, 0.80)


@pytest.fixture
def world(template):
    yield template
    template.reset()


def roll_back(world, *arguments):
    return world.json("rollback", MODEL, "--reason", "late orders", *arguments)


def test_a_rollback_is_one_step_that_dagster_knows_at_once(world):
    outcome = roll_back(world)
    assert (outcome["before"], outcome["after"], outcome["kind"], outcome["asset"]) == ("3", "2", ROLLBACK, "champion")
    assert world.holder() == "2"
    move = world.json("history", MODEL)["moves"][-1]
    assert (move["why"], move["kind"], bool(move["by"])) == ("late orders", ROLLBACK, True)
    assert world.json("history", "verify", MODEL)["holds"]  # the event log has the entry, too
    with world.instance() as instance:
        event = instance.get_latest_materialization_event(CHAMPION.key)
        assert event and event.asset_materialization
        assert (event.asset_materialization.tags or {})["dagster/data_version"] == f"{MODEL}/2"
        seen = []

        @dg.asset(deps=[CHAMPION])
        def deployment(context: dg.AssetExecutionContext) -> None:
            from dagster_mlops.core.asset_records import upstream_records

            seen.extend(record.ref.id for record in upstream_records(context))

        assert dg.materialize([deployment], instance=instance).success
    assert seen == [f"{MODEL}/2"]
    shown = world.command("status")
    assert f"{MODEL}/2 (champion)" in shown.stdout


def test_it_holds_against_promotions_until_it_is_lifted(world):
    roll_back(world)
    seen = world.promote("3")
    assert seen["mlflow/promoted"] is False and world.holder() == "2"
    [row] = [record.data for record in seen["mlflow/decision"].records if record.data["rule"] == "not rolled back"]
    assert row["verdict"] == "fails" and "late orders" in row["why"] and "--lift 3" in row["why"]
    refused = world.command("rollback", MODEL, "--reason", "fixed", "--lift", "2")
    assert refused.exit_code == 2 and "In force: 3" in refused.stderr
    assert roll_back(world, "--lift", "3")["kind"] == "lift" and world.holder() == "2"
    assert world.promote("3")["mlflow/promoted"] is True and world.holder() == "3"
    assert world.json("history", "verify", MODEL)["holds"]


def test_a_newer_version_and_a_move_by_hand_go_on(world):
    roll_back(world)
    world.client.set_registered_model_alias(MODEL, "champion", "3")  # a person's decision
    world.promote("3")
    world.client.set_registered_model_alias(MODEL, "champion", "2")
    assert world.promote("3")["mlflow/promoted"] is True
    assert [move["kind"] for move in world.json("history", MODEL)["moves"]][3:] == [
        "rollback",
        "by hand",
        "by hand",
        "promotion",
    ]
    roll_back(world)
    assert world.promote(world.train(0.9))["mlflow/promoted"] is True and world.holder() == "4"


def test_it_skips_versions_that_were_rolled_back_from_or_deleted(world):
    world.promote(world.train(0.9))
    assert roll_back(world)["after"] == "3"
    world.client.delete_model_version(MODEL, "2")
    assert roll_back(world)["after"] == "1"
    nothing = world.command("rollback", MODEL, "--reason", "late orders")
    assert nothing.exit_code == 2 and "--to VERSION" in nothing.stderr
    assert roll_back(world, "--to", "4")["after"] == "4" and world.holder() == "4"


def test_it_returns_to_no_version_that_has_never_held_the_alias(world):
    version = world.train(0.1)
    refused = world.command("rollback", MODEL, "--reason", "late orders", "--to", version)
    assert refused.exit_code == 2 and "has never held 'champion'" in refused.stderr.replace("\n", " ")
    refused = world.command("rollback", MODEL, "--reason", "late orders", "--to", "1", "--alias", "latest")
    assert refused.exit_code == 2 and "has never held 'latest'" in refused.stderr.replace("\n", " ")
    assert world.holder() == "3" and len(world.json("history", MODEL)["moves"]) == 3


def test_a_killed_rollback_is_undone_and_made_by_the_next_one(world):
    with world.resource.models() as models:
        history = History(models, models, MODEL)
        history.append(ROLLBACK, "champion", "3", "2", by="ann", why="late orders", facts={})
    assert world.holder() == "3"
    assert roll_back(world)["after"] == "2" and world.holder() == "2"
    assert [move["kind"] for move in world.json("history", MODEL)["moves"]][3:] == ["rollback", "undone", "rollback"]


def test_of_two_people_at_once_the_second_goes_back_no_further(world, monkeypatch):
    turn = MlflowModels.turn

    def after_another_one(models, name):
        monkeypatch.setattr(MlflowModels, "turn", turn)
        roll_back(world)
        return turn(models, name)

    monkeypatch.setattr(MlflowModels, "turn", after_another_one)
    second = world.command("rollback", MODEL, "--reason", "late orders, too")
    assert second.exit_code == 2 and "someone else was quicker" in second.stderr.replace("\n", " "), second.output
    assert world.holder() == "2"


def test_a_database_that_cannot_be_written_is_named_and_so_is_what_was_done(world):
    full(world.file)
    refused = world.command("rollback", MODEL, "--reason", "late")
    assert refused.exit_code == 2 and "database or disk is full" in refused.stderr and "INSERT" not in refused.stderr
    assert world.holder() == "3"
    world.reset()
    full(*world.home.rglob("*.db"))
    done = world.command("rollback", MODEL, "--reason", "late")
    told = " ".join(done.stdout.split())
    assert done.exit_code == 1 and "Dagster does not know it yet: IntegrityError" in told and world.holder() == "2"


def test_a_long_reason_is_short_on_screens_and_whole_in_json(world):
    assert roll_back(world, "--reason", "x" * 10_000)["why"] == "x" * 10_000
    assert world.command("history", MODEL).stdout.count("x") < 500


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["delays", "--reason", "late"], "'delays'"),
        ([MODEL, "--reason", " "], "needs a reason"),
        ([MODEL, "--reason", "late", "--to", "3"], "already"),
        ([MODEL, "--reason", "late", "--to", "9"], "no version 9"),
        ([MODEL, "--reason", "late", "--to", "9" * 30], "no version 999"),
        ([MODEL, "--reason", "x" * 10_001], "a reason of 10,001 characters is too long: at most 10,000"),
        ([MODEL, "--reason", "late\udce9"], r"not text in UTF-8: 'late\udce9'"),
        ([f"{MODEL}\udce9", "--reason", "late"], "not text in UTF-8"),
        ([MODEL, "--reason", "late", "--alias", "challenger"], "--alias"),
        ([MODEL, "--reason", "late", "--to", "1", "--lift", "2"], "one of them"),
    ],
)
def test_what_cannot_be_done_is_said(world, arguments, told):
    refused = world.command("rollback", *arguments, "--registry", world.uri)
    assert refused.exit_code == 2 and told in refused.stderr.replace("\n", " "), refused.output
    assert world.holder() == "3"
