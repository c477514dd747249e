"""Others may set tags, rename and delete: no version gets an alias by that, and no promotion stops for good."""

import dataclasses
import json
import sqlite3
from contextlib import closing
from typing import Any

import dagster as dg
import pytest

from dagster_mlops.errors import HistoryError
from dagster_mlops.mlflow.registry import history as runs
from dagster_mlops.mlflow.registry.models import MlflowModels
from dagster_mlops.promotion import Approval
from dagster_mlops.promotion.author import Author
from dagster_mlops.promotion.case import Case
from dagster_mlops.promotion.gate import Gate
from dagster_mlops.promotion.history.entry import APPROVAL, BY_HAND, PROMOTION, UNDONE, read_entry
from dagster_mlops.promotion.history.envelope import HEAD, SIGNING_KEY, STATEMENT, new_key, seal, trusted_keys
from dagster_mlops.promotion.history.log import History, moves_of
from dagster_mlops.promotion.history.verification import Held, Store, Verification, verify
from dagster_mlops.promotion.moves import Move, promote_version
from dagster_mlops.promotion.rules.improvement import Improvement
from dagster_mlops.promotion.verdict import Row
from tests.support import known_warnings
from tests.support.promotions import MODEL, Promotions

pytestmark = [pytest.mark.usefixtures("warm_tools"), *known_warnings.MLFLOW]


class World(Promotions):
    @property
    def models(self) -> MlflowModels:
        return MlflowModels(self.resource, self.client)

    def attempt(self, version: str, model: str = MODEL, **options: Any) -> Move:
        models = self.models
        candidate = models.version(model, version)
        judge = Gate([Improvement(metric="auc")], Case(models, candidate)).judge
        return promote_version(models, candidate, "champion", judge, Author("test"), **options)

    def champion(self, model: str = MODEL) -> str:
        return str(self.client.get_registered_model(model).aliases.get("champion", ""))

    def verified(self) -> Verification:
        models = self.models
        version = models.version(MODEL, "@champion")
        store = Store("mlflow", {n: [text] for n, text in models.history(MODEL).items()}, [models.head(MODEL)])
        return verify(MODEL, [store], {"champion": Held(version.version, version.sha256)}, trusted_keys())

    def kinds(self) -> list[str]:
        texts = self.models.history(MODEL)
        return [read_entry(texts[number])[0].kind for number in sorted(texts)]


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "world")


def register(world: World, model: str, auc: float) -> str:
    run = world.client.create_run("0")
    world.client.log_metric(run.info.run_id, "auc", auc)
    return str(world.client.create_model_version(model, "/models/x", run.info.run_id).version)


def test_a_model_that_is_made_again_takes_no_verdict_of_the_old_one(world):
    world.attempt(world.train(0.7))
    world.client.delete_registered_model(MODEL)
    world.client.create_registered_model(MODEL)
    again = world.train(float("nan"))
    assert again == "1" and not world.attempt(again).promoted and not world.champion()


@pytest.mark.parametrize("lost", ["the head", "nothing"])
def test_an_alias_that_was_put_back_by_hand_stays_there(world, lost):
    first, second = world.train(0.7), world.train(0.8)
    world.attempt(first)
    world.attempt(second)
    if lost == "the head":
        world.client.delete_registered_model_tag(MODEL, runs.HEAD)
    world.client.set_registered_model_alias(MODEL, "champion", first)
    assert not world.attempt(world.train(0.1)).promoted and world.champion() == first
    assert world.kinds()[2:] == [UNDONE if lost == "the head" else BY_HAND]


def test_a_killed_promotion_is_judged_again_by_the_rules_of_then(world):
    first, second = world.train(0.7), world.train(0.8)
    world.attempt(first)
    History(world.models, world.models, MODEL).append(
        PROMOTION, "champion", first, second, by="killed", why="", facts={}
    )
    models = world.models
    candidate = models.version(MODEL, second)
    strict = Gate([Improvement(metric="auc", absolute=0.5)], Case(models, candidate)).judge
    assert not promote_version(models, candidate, "champion", strict, Author("test")).promoted
    assert world.champion() == first and world.kinds() == [PROMOTION, PROMOTION, UNDONE]
    assert [move.after for move in moves_of(models, MODEL, "champion")] == [first]
    assert world.attempt(second).promoted and world.champion() == second


def test_a_model_that_was_renamed_has_a_history_of_its_own(world):
    world.attempt(world.train(0.7))
    world.client.rename_registered_model(MODEL, "other")
    world.client.create_registered_model(MODEL)
    assert world.attempt(register(world, MODEL, 0.6)).promoted
    assert not world.attempt(register(world, "other", 0.1), "other").promoted and world.champion("other") == "1"
    assert world.attempt(register(world, "other", 0.9), "other").promoted and world.champion() == "1"
    for model in (MODEL, "other"):
        store = Store("mlflow", {n: [t] for n, t in world.models.history(model).items()}, [world.models.head(model)])
        assert verify(model, [store], {"champion": Held(world.champion(model), "")}, {}).holds


@pytest.mark.parametrize("name", ["ann's model", 'say "hi"', f"{MODEL}' and attributes.status = 'FINISHED"])
def test_a_name_with_quotes_is_a_name(world, name):
    world.attempt(world.train(0.7))
    world.client.create_registered_model(name)
    assert world.attempt(register(world, name, 0.9), name).promoted
    assert len(world.models.history(MODEL)) == 1 == len(world.models.history(name))


@pytest.mark.parametrize("value", ['{"ticket": 1, "by": "x", "until": 1' + "0" * 400 + "}", "[" * 4900])
def test_a_tag_of_a_turn_stops_nothing(world, value):
    world.client.set_registered_model_tag(MODEL, "dagster_mlops.turn.x", value)
    assert world.attempt(world.train(0.7)).promoted


@pytest.mark.parametrize("size", [-100, 3_000_000])
def test_a_false_head_is_named_and_with_a_key_it_stops_nothing(world, size, monkeypatch):
    false = seal(HEAD, {"model": MODEL, "size": size, "root": "ab"}, None)
    monkeypatch.setenv(SIGNING_KEY, new_key()[0])
    world.attempt(world.train(0.7))
    world.client.set_registered_model_tag(MODEL, runs.HEAD, false)
    store = Store("mlflow", {n: [t] for n, t in world.models.history(MODEL).items()}, [false])
    assert not verify(MODEL, [store], {}, trusted_keys()).holds
    assert world.attempt(world.train(0.8)).promoted
    monkeypatch.delenv(SIGNING_KEY)
    world.client.set_registered_model_tag(MODEL, runs.HEAD, false)
    if size > 0:
        with pytest.raises(HistoryError, match=r"the tag dagster_mlops\.history_head of the model: remove it"):
            world.attempt(world.train(0.9))


def test_an_empty_history_with_a_head_and_a_number_behind_a_gap(world):
    world.attempt(world.train(0.7))
    run = runs._run_id(world.client, MODEL)
    world.client.log_param(run, "00000099", "x")
    assert world.attempt(world.train(0.8)).promoted
    world.client.set_registered_model_tag(MODEL, runs.RUN, "nonsense")
    assert world.attempt(world.train(0.9)).promoted, "the run is found by its own tag"
    world.client.delete_run(run)
    world.client.delete_registered_model_tag(MODEL, runs.RUN)
    with pytest.raises(HistoryError, match="has 0 entries in order, where its head counts 3"):
        world.attempt(world.train(0.95))


@pytest.mark.parametrize("signed", [True, False])
def test_texts_that_are_not_entries_stop_no_promotion_and_are_noted(world, signed, monkeypatch):
    if signed:
        monkeypatch.setenv(SIGNING_KEY, new_key()[0])
    world.attempt(world.train(0.7))
    run = runs._run_id(world.client, MODEL)
    for number, text in enumerate(["x", "", "0123456789abcdef 2 the rest is missing"], 1):
        world.client.log_param(run, f"{number:08d}", text)
    version = world.train(0.8)
    assert world.attempt(version).promoted and world.champion() == version
    world.models.append(MODEL, 5, "x")
    assert not world.attempt(world.train(0.1)).promoted
    world.models.append(MODEL, 6, world.models.history(MODEL)[4])  # an entry of another place
    assert [finding.entry for finding in world.verified().findings] == [6]
    version = world.train(0.9)
    assert world.attempt(version).promoted and world.champion() == version
    assert world.verified().holds and [note.entry for note in world.verified().notes] == [1, 2, 3, 5, 6]
    assert [move.index for move in moves_of(world.models, MODEL, "champion")] == [0, 4, 7]


def test_a_promotion_goes_on_behind_no_entry_that_was_changed(world):
    world.attempt(world.train(0.7))
    world.attempt(world.train(0.8))
    for text in ("x", "0123456789abcdef 1 {}"):
        with closing(sqlite3.connect(world.file)) as database, database:
            database.execute("update params set value = ? where key = '00000001'", [text])
        with pytest.raises(HistoryError, match="its first 2 entries are not those of its head"):
            world.attempt(world.train(0.9))


def test_an_approval_that_claims_the_place_of_a_signed_entry_does_not_count(world, monkeypatch):
    monkeypatch.setenv(SIGNING_KEY, new_key()[0])
    version = world.train(0.7)
    world.attempt(version, approval=Approval())
    request = read_entry(world.models.history(MODEL)[0])[0]
    forged = dataclasses.replace(request, kind=APPROVAL, by="eve", facts={"request": 0})
    world.models.append(MODEL, 1, seal(STATEMENT, forged.statement(), None))
    assert not world.attempt(version, approval=Approval()).promoted


def test_with_a_key_only_signed_heads_and_entries_hold(world, monkeypatch):
    world.attempt(world.train(0.7))
    texts, head = world.models.history(MODEL), world.models.head(MODEL)
    monkeypatch.setenv(SIGNING_KEY, new_key()[0])
    store = Store("mlflow", {n: [t] for n, t in texts.items()}, [head])
    findings = verify(MODEL, [store], {}, trusted_keys()).findings
    assert "no entry is signed by a key that you trust" in [finding.problem for finding in findings]


def test_notes_from_before_the_request_and_unsigned_approvals_do_not_count(world, monkeypatch):
    monkeypatch.setenv(SIGNING_KEY, new_key()[0])
    version = world.train(0.7)
    world.client.set_model_version_tag(MODEL, version, "dagster_mlops.approve", "ann: set by the training")
    for _ in range(2):
        assert not world.attempt(version, approval=Approval()).promoted
    entry = read_entry(world.models.history(MODEL)[0])[0]
    forged = {**entry.statement()}
    facts = {
        "kind": "approval",
        "index": 1,
        "by": "eve",
        "root": History(world.models, world.models, MODEL)._tree.root(),
    }
    forged["predicate"] = {**forged["predicate"], **facts}
    world.models.append(MODEL, 1, seal("application/vnd.in-toto+json", forged, None))
    assert not world.attempt(version, approval=Approval()).promoted


def test_the_files_that_were_rolled_back_do_not_come_back_under_another_number(world):
    first, second = world.train(0.7), world.train(0.8)
    world.attempt(first)
    world.attempt(second)
    told = world.command("rollback", MODEL, "--reason", "late", "--registry", world.uri)
    assert told.exit_code == 0 and world.champion() == first
    entity = world.client.get_model_version(MODEL, second)
    copy = world.client.create_model_version(MODEL, str(entity.source), entity.run_id, tags=entity.tags)
    move = world.attempt(str(copy.version))
    assert not move.promoted and "rolled back from it" in move.verdict.why


def test_a_rule_may_be_a_generator_and_wrong_rows_fail(world):
    class Silent:
        name = "silent"

        def judge(self, case: Case) -> Any:
            yield from ()

    class Single:
        name = "single"

        def judge(self, case: Case) -> Any:
            return Row.of("single", True, "")

    class Good:
        name = "good"

        def judge(self, case: Case) -> Any:
            yield Row("good", "holds", 0.5, "", "", "")  # pyright: ignore[reportArgumentType]

    models = world.models
    case = Case(models, models.version(MODEL, world.train(0.7)))
    for rule, promotes in ((Silent(), False), (Single(), False), (Good(), True)):
        verdict = Gate([rule], case).judge(None)
        assert verdict.promotes is promotes and len(verdict.rows) == 1
        json.dumps(verdict.evidence(), allow_nan=False)


@pytest.mark.parametrize("options", [{"approvers": "ann"}, {"approvers": [" "]}, {"people": 1.5}, {"valid_days": "3"}])
def test_an_approval_of_wrong_types_is_refused_when_definitions_load(options):
    with pytest.raises(dg.DagsterInvalidDefinitionError):
        Approval(**options).refuse_impossible()
