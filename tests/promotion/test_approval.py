"""Approval by people: no run waits, each way of deciding counts once, and nobody approves a promotion of their own."""

import importlib
import json
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg
import pytest
from dagster.components.testing import create_defs_folder_sandbox
from typer.testing import CliRunner

from dagster_mlops.cli import app
from dagster_mlops.errors import HistoryError
from dagster_mlops.mlflow import MlflowResource
from dagster_mlops.mlflow.registry.models import MlflowModels
from dagster_mlops.promotion import Approval, approval_asset, approval_sensor, promotion_asset
from dagster_mlops.promotion.approval import NOTE
from dagster_mlops.promotion.approval_assets import ApprovalConfig
from dagster_mlops.promotion.author import Author, user
from dagster_mlops.promotion.case import Case
from dagster_mlops.promotion.component import PromotionComponent
from dagster_mlops.promotion.decisions import decide
from dagster_mlops.promotion.gate import Gate
from dagster_mlops.promotion.history.entry import APPROVAL, REJECTION, REQUEST, Entry
from dagster_mlops.promotion.history.event_log import Mirror
from dagster_mlops.promotion.history.log import moves_of
from dagster_mlops.promotion.moves import Move, promote_version
from dagster_mlops.promotion.rules.improvement import Improvement
from dagster_mlops.provenance import ModelVersion
from tests.support import known_warnings, pages
from tests.support.promotions import full

pytestmark = [
    pytest.mark.usefixtures("warm_tools"),
    *known_warnings.MLFLOW,
    *known_warnings.DEPRECATED,
    *known_warnings.DAGSTER_BETA,
]


@pytest.fixture
def resource(tmp_path, empty_database):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    return MlflowResource(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture
def models(resource):
    client = resource.client()
    client.create_registered_model("delay")
    for auc in (0.7, 0.8, 0.9):
        run = client.create_run("0")
        client.log_metric(run.info.run_id, "auc", auc)
        client.create_model_version("delay", "/models/delay", run.info.run_id)
    return MlflowModels(resource, client)


def promote(models: MlflowModels, version: str, approval: Approval | None, by: str = "schedule weekly") -> Move:
    candidate = models.version("delay", version)
    judge = Gate([Improvement(metric="auc")], Case(models, candidate)).judge
    return promote_version(models, candidate, "champion", judge, Author(by), approval=approval)


def verdict(move: Move) -> str:
    return move.verdict.rows[-1].verdict


def champion(models: MlflowModels) -> str:
    return str(models.client.get_registered_model("delay").aliases.get("champion", ""))


def test_a_promotion_is_asked_for_once_and_made_when_enough_people_have_approved(models):
    two = Approval(people=2)
    for _ in range(2):
        move = promote(models, "1", two)
        assert not move.promoted and verdict(move) == "waits" and not champion(models)
        assert "dagster-mlops approve delay 1" in move.verdict.why
    assert len(models.history("delay")) == 1, "one request, however often it runs"
    for _ in range(2):
        decide(models, "delay", APPROVAL, by="ann", why="good")
    assert not promote(models, "1", two).promoted, "one person who approves twice is one"
    decide(models, "delay", APPROVAL, by="Bob")
    move = promote(models, "1", two)
    assert move.promoted and champion(models) == "1" and "approved by Bob, ann" in move.verdict.why
    [entry] = moves_of(models, "delay", "champion")
    assert [(each["by"], each["why"]) for each in entry.facts["approvals"]] == [
        ("ann", "good"), ("ann", "good"), ("Bob", "")
    ]  # fmt: skip
    with pytest.raises(HistoryError, match="waiting: none"):
        decide(models, "delay", APPROVAL, by="cleo")


def test_a_rejection_holds_until_the_same_person_approves(models):
    one = Approval()
    promote(models, "1", one)
    decide(models, "delay", REJECTION, by="ann", why="drifts")
    decide(models, "delay", APPROVAL, by="bob")
    move = promote(models, "1", one)
    assert verdict(move) == "fails" and "rejected by ann: drifts" in move.verdict.why and not champion(models)
    decide(models, "delay", APPROVAL, by="ann")
    assert promote(models, "1", one).promoted


def test_an_approval_is_of_one_candidate_against_one_champion(models):
    promote(models, "2", Approval())
    promote(models, "3", Approval())
    with pytest.raises(HistoryError, match=r"\(not named\); waiting: 2, 3"):
        decide(models, "delay", APPROVAL, by="ann")
    decide(models, "delay", APPROVAL, by="ann", version="3")
    assert not promote(models, "2", Approval()).promoted
    assert promote(models, "3", Approval()).promoted and champion(models) == "3"
    models.client.set_registered_model_alias("delay", "champion", "1")
    assert verdict(promote(models, "3", Approval())) == "waits", "the approval was used, and the champion is another"


def test_only_approvers_count_and_a_request_ends(models):
    listed = Approval(approvers=["Ann", "bob"])
    promote(models, "1", listed)
    with pytest.raises(HistoryError, match=r"'eve' is not one of the approvers of 'delay': Ann, bob"):
        decide(models, "delay", APPROVAL, by="eve")
    models.note(models.version("delay", "1"), NOTE, "eve: fine")
    move = promote(models, "1", listed)
    assert verdict(move) == "waits" and "eve may not approve this" in move.verdict.why
    decide(models, "delay", APPROVAL, by="ann")
    brief = Approval(approvers=["Ann", "bob"], valid_days=1e-9)
    assert verdict(promote(models, "1", brief)) == "waits", "it has ended, so another one is made"
    assert [e.kind for e in entries(models)].count(REQUEST) == 2


def entries(models: MlflowModels) -> list[Entry]:
    from dagster_mlops.promotion.history.log import History

    return History(models, models, "delay").since_last_move("champion")


TRAINING = """
import mlflow
import numpy as np
from dagster_mlops.mlflow import training_asset


class Always(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return model_input


@training_asset(registered_model_name="delay")
def model() -> None:
    mlflow.log_metric("auc", 0.8)
    mlflow.pyfunc.log_model(
        name="model", python_model=Always(), input_example=np.zeros((1, 1)), pip_requirements=[]
    )
"""


@pytest.mark.thorough
def test_authors_of_code_and_training_do_not_approve_their_own_and_others_of_the_repository_do(
    tmp_path, monkeypatch, resource, instance
):
    def git(*command: str) -> None:
        identity = ["-c", "user.name=merger", "-c", "user.email=merger@example.com"]
        subprocess.run(["git", *identity, *command], cwd=code, check=True)

    def commit(author: str, name: str, text: str) -> None:
        (code / name).write_text(text)
        git("add", ".")
        git("commit", "-q", "-m", "Change", f"--author={author}")

    (code := tmp_path / "code").mkdir()
    git("init", "-q")
    commit("Bob Ray <bob@example.com>", "README", "Delays.")
    commit("Ann Lee <ann.lee@example.com>", "delays.py", TRAINING)
    monkeypatch.syspath_prepend(str(code))
    monkeypatch.setenv("LOGNAME", "trainer")
    training = importlib.import_module("delays").model
    trained = dg.materialize([training], instance=instance, resources={"mlflow": resource})
    monkeypatch.delitem(sys.modules, "delays")
    apart, models = Approval(separate_duties=True), MlflowModels(resource, resource.client())
    assert trained.success and verdict(promote(models, "1", apart, by="launcher")) == "waits"
    for person in ("ann.lee", "ann.lee@example.com", "Ann Lee", "trainer", "launcher"):
        decide(models, "delay", APPROVAL, by=person)
        move = promote(models, "1", apart, by="launcher")
        names, is_refused, _ = move.verdict.why.partition(" may not approve this")
        assert verdict(move) == "waits" and is_refused and person in names
    decide(models, "delay", APPROVAL, by="bob")  # who has written another commit of the repository
    assert promote(models, "1", apart, by="launcher").promoted


def test_the_command_says_what_a_decision_has_changed_and_takes_none_about_a_request_that_has_ended(models):
    launcher, apart = "launcher", Approval(people=2, separate_duties=True)
    promote(models, "1", apart, by=launcher)

    def told(person: str, code: int, *options: str) -> str:
        command = ["approve", "delay", "--as", person, "--registry", models.resource.uri, *options]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == code, result.output
        return " ".join(result.stdout.split())

    assert "It does not count: launcher may not decide about this version." in told(launcher, 1)
    second = json.loads(told("ann", 0, "--json"))
    facts = {"kind": "approval", "version": "1", "by": "ann", "counts": True, "verdict": "waits", "problem": ""}
    assert second | facts == second and "1 of 2 so far" in second["state"]
    assert "the authors of this version are unknown" in told("bob", 0), "it has no training that can be read"
    promote(models, "2", Approval(valid_days=1e-9))
    with pytest.raises(HistoryError, match="about version 2 of 'delay' has ended"):
        decide(models, "delay", APPROVAL, by="ann", version="2")


def test_a_note_on_the_version_approves_once(models):
    promote(models, "1", Approval())
    version = models.version("delay", "1")
    models.note(version, NOTE, "ann: fine")
    models.note(version, f"{NOTE}.second", "bob")
    assert promote(models, "1", Approval(people=2)).promoted
    assert promote(models, "2", None).promoted
    models.client.set_registered_model_alias("delay", "champion", "") if False else None
    models.client.delete_registered_model_alias("delay", "champion")
    assert verdict(promote(models, "1", Approval())) == "waits", "the notes were for the other time"


def test_a_registry_without_a_history_cannot_ask(models):
    class Bare:
        tool = "acme"

    bare: Any = Bare()
    version = ModelVersion(name="delay", version="1", run_id="r", tracking_uri="x")
    with pytest.raises(HistoryError, match="keeps no history"):
        promote_version(bare, version, "champion", lambda champion: None, Author("x"), approval=Approval())  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("options", [{"people": 0}, {"people": 3, "approvers": ["a", "b"]}, {"valid_days": 0}])
def test_an_approval_that_can_never_be_given_is_refused_when_definitions_load(options):
    with pytest.raises(dg.DagsterInvalidDefinitionError, match=r"Approval\("):
        promotion_asset(candidate="model", registered_model_name="delay", metric="auc", approval=Approval(**options))


# --- in Dagster


PROMOTION = promotion_asset(candidate="model", registered_model_name="delay", metric="auc", approval=Approval())
BY_HAND = approval_asset(promotion=PROMOTION, registered_model_name="delay")
SENSOR = approval_sensor(promotion=PROMOTION, registered_model_name="delay")


@pytest.fixture
def instance(tmp_path):
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


def test_in_dagster_no_run_is_open_while_people_decide_and_the_sensor_promotes_after_it(instance, resource, models):
    @dg.asset
    def model() -> dg.MaterializeResult:
        return dg.MaterializeResult(metadata=models.version("delay", "1").to_metadata())

    definitions = dg.Definitions(assets=[model, PROMOTION, BY_HAND], sensors=[SENSOR], resources={"mlflow": resource})

    def run(asset: Any, config: ApprovalConfig | None = None) -> dg.ExecuteInProcessResult:
        given: Any = {"run_config": dg.RunConfig({"approval": config})} if config else {}
        job = definitions.resolve_implicit_global_asset_job_def()
        return job.execute_in_process(asset_selection=[asset.key], instance=instance, **given)

    def tick() -> list[dg.RunRequest]:
        context = dg.build_sensor_context(instance, definitions=definitions, resources={"mlflow": resource})
        return list(SENSOR.evaluate_tick(context).run_requests or ())

    run(model)
    assert tick() == [], "nothing was asked for yet"
    asked = run(PROMOTION)
    assert asked.success and not champion(models)
    [event] = asked.get_asset_materialization_events()
    rows: Any = event.materialization.metadata["mlflow/decision"]
    assert [record.data["verdict"] for record in rows.records] == ["holds", "waits"]
    ended = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}
    assert not [run for run in instance.get_runs() if run.status not in ended], "nothing is open"
    assert tick() == []
    given = run(BY_HAND, ApprovalConfig(by="ann", comment="good on weekends"))
    [event] = given.get_asset_materialization_events()
    assert event.materialization.metadata["mlflow/by"].value == "ann"
    [first], [again] = tick(), tick()
    assert first.asset_selection == [PROMOTION.key]
    assert first.run_key == again.run_key, "Dagster launches one run for it"
    assert run(PROMOTION).success and champion(models) == "1"
    assert tick() == []
    [move] = moves_of(models, "delay", "champion")
    assert move.facts["approvals"][0]["why"] == "good on weekends"
    assert user() and datetime.fromisoformat(move.at) > datetime.now(UTC) - timedelta(minutes=5)


def test_a_decision_on_the_command_line_is_an_entry_of_both_places(instance, resource, models, tmp_path):
    @dg.asset
    def model() -> dg.MaterializeResult:
        return dg.MaterializeResult(metadata=models.version("delay", "1").to_metadata())

    ran = dg.materialize([model, PROMOTION], instance=instance, resources={"mlflow": resource})
    assert ran.success
    (tmp_path / "dagster.yaml").touch()
    told = CliRunner().invoke(
        app, ["approve", "delay", "--as", "ann", "--comment", "fine", "--dagster-home", str(tmp_path)]
    )
    assert told.exit_code == 0, told.output
    text = " ".join(told.stdout.split())
    assert "approval of version 1 of delay for champion by ann: entry 1" in text
    assert "approved by 1 person: holds; approved by ann Materialize the promotion asset" in text
    assert Mirror(instance, PROMOTION.key, "mlflow", "delay").size() == 2 == len(models.history("delay"))
    assert promote(models, "1", Approval()).promoted
    late = CliRunner().invoke(app, ["approve", "delay", "--registry", resource.tracking_uri])
    assert late.exit_code == 2 and "waiting: none" in late.output
    promote(models, "2", Approval())
    full(*tmp_path.rglob("history/**/*.db"), *tmp_path.rglob("storage/*.db"))
    half = CliRunner().invoke(app, ["approve", "delay", "--as", "bob", "--json", "--dagster-home", str(tmp_path)])
    recorded = json.loads(half.stdout)
    assert half.exit_code == 3 and "event log does not have it: IntegrityError" in recorded["problem"]
    assert recorded["verdict"] == "holds" and promote(models, "2", Approval()).promoted


def test_the_example_in_yaml_brings_the_asset_and_the_sensor():
    document = pages.document("promotion_approval.md")
    with create_defs_folder_sandbox() as sandbox:
        path = sandbox.scaffold_component(component_cls=PromotionComponent, defs_yaml_contents=document)
        resources = dg.Definitions(resources={"mlflow": MlflowResource(tracking_uri="sqlite:///x.db")})
        with sandbox.load_component_and_build_defs(path) as (_, built):
            definitions = dg.Definitions.merge(built, resources)
            keys = {key.to_user_string() for key in definitions.resolve_asset_graph().get_all_asset_keys()}
            assert {"champion", "champion_approval"} <= keys
            assert [sensor.name for sensor in definitions.sensors or ()] == ["champion_after_approval"]


def test_the_example_in_python_is_definitions_that_load():
    names = pages.names(pages.blocks("promotion_approval.md", "python")[0])
    resources = {"mlflow": MlflowResource(tracking_uri="sqlite:///x.db")}
    assets = [names["champion"], names["approval"], dg.AssetSpec("arrival_delay_model")]
    dg.Definitions.validate_loadable(
        dg.Definitions(assets=assets, sensors=[names["after_approval"]], resources=resources)
    )
