"""A version comes from one registry into another with its files, its record and the statement of its promotion."""

import base64
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster.components.testing import create_defs_folder_sandbox

from dagster_mlops.core.model_digest import model_digest
from dagster_mlops.lineage import trace
from dagster_mlops.mlflow import (
    MlflowResource,
    ModelCopyComponent,
    PromotionComponent,
    SourcePromotion,
    model_copy_asset,
    promotion_asset,
)
from dagster_mlops.mlflow.registry.models import MlflowModels
from dagster_mlops.promotion.carried import FILE, Statement
from dagster_mlops.promotion.history import envelope as envelopes
from dagster_mlops.promotion.history.envelope import new_key
from dagster_mlops.promotion.history.log import moves_of
from dagster_mlops.provenance import ModelVersion
from tests.support import known_warnings, pages
from tests.support.promotions import CHAMPION, MODEL, Promotions

pytestmark = [pytest.mark.usefixtures("warm_tools"), *known_warnings.MLFLOW, *known_warnings.DAGSTER_BETA]
COPY = model_copy_asset(name="copy", registered_model_name=MODEL, source="dev", registry="prod")


class Places:
    """A registry for development, with a Dagster instance, and one for production."""

    def __init__(self, folder: Path, empty_database: Path) -> None:
        self.folder, self.dev = folder, Promotions(folder / "dev")
        (folder / "prod").mkdir()
        shutil.copy(empty_database, folder / "prod" / "mlflow.db")
        self.prod = MlflowResource(tracking_uri=f"sqlite:///{folder}/prod/mlflow.db")
        self.client = self.prod.client()

    def promote(self, *rules: Any, copy: dg.AssetsDefinition = COPY, **options: Any) -> Any:
        """The outcome of a copy and its promotion: metadata by asset, or the text of the error."""
        promoted = promotion_asset(
            candidate=copy, registered_model_name=MODEL, registry="prod", rules=rules or [SourcePromotion()],
            name="prod_champion", **options,
        )  # fmt: skip
        resources = {"dev": self.dev.resource, "prod": self.prod}
        with self.dev.instance() as instance:
            assets = [dg.AssetSpec("delay_model"), CHAMPION, copy, promoted]
            result = dg.materialize(
                assets, selection=[copy, promoted], instance=instance, raise_on_error=False,
                resources={**resources, "mlflow": self.dev.resource},
            )  # fmt: skip
            if failures := result.get_step_failure_events():
                return failures[0].step_failure_data.error.to_string()  # pyright: ignore[reportOptionalMemberAccess]
            return {
                event.asset_key.to_user_string(): {
                    name: getattr(value, "value", value) for name, value in event.materialization.metadata.items()
                }
                for event in result.get_asset_materialization_events()
                if event.asset_key
            }

    def promote_alone(self, *rules: Any) -> dict[str, Any]:
        """The row of the rule in a run that does not copy again, as that after an approval."""
        promoted = promotion_asset(
            candidate=COPY, registered_model_name=MODEL, registry="prod", rules=rules, name="alone", alias="alone"
        )
        with self.dev.instance() as instance:
            resources = {"dev": self.dev.resource, "prod": self.prod}
            result = dg.materialize(
                [COPY, promoted], selection=[promoted], instance=instance, resources=resources, raise_on_error=False
            )
            if failures := result.get_step_failure_events():
                return {"why": failures[0].step_failure_data.error.to_string()}  # pyright: ignore[reportOptionalMemberAccess]
            [event] = result.get_asset_materialization_events()
        [record] = event.materialization.metadata["mlflow/decision"].records  # pyright: ignore[reportAttributeAccessIssue]
        return dict(record.data)

    def row(self, *rules: Any, **options: Any) -> dict[str, Any]:
        """The row of the rule."""
        metadata = self.promote(*rules, **options)
        if isinstance(metadata, str):
            return {"verdict": "fails", "why": metadata}
        [record] = metadata["prod_champion"]["mlflow/decision"].records
        return dict(record.data)

    def versions(self) -> list[str]:
        return sorted(str(version.version) for version in self.client.search_model_versions(f"name='{MODEL}'"))

    def version(self, which: str = "") -> ModelVersion:
        return MlflowModels(self.prod, self.client).version(MODEL, which)

    def place(self, statement: Statement, version: str = "1") -> None:
        """Put another statement beside a version."""
        MlflowModels(self.prod, self.client).write_file(self.version(version), FILE, statement.to_bytes())


@pytest.fixture
def places(tmp_path, empty_database) -> Iterator[Places]:
    yield Places(tmp_path, empty_database)


def test_a_copy_has_files_record_metrics_and_statement_and_is_made_once(places, tmp_path):
    places.client.create_registered_model(MODEL)
    places.client.create_model_version(MODEL, "/models/another")  # the destination has versions of its own
    first, second = places.dev.train(0.7), places.dev.train(0.8)
    places.dev.promote(first)
    places.dev.promote(second)
    outcome = places.promote()
    assert outcome["copy"]["mlflow/statement"] == "1 entries about champion"
    assert outcome["prod_champion"]["mlflow/promoted"] is True
    [row] = outcome["prod_champion"]["mlflow/decision"].records
    assert row.data["candidate"] == f"{MODEL}/2" and "no public key is given" in row.data["why"]
    copy, origin = places.version("@champion"), places.dev.record(second)
    assert (copy.version, copy.tracking_uri, copy.dagster_asset) == ("2", places.prod.uri, "copy")
    assert copy.upstream == (origin.ref,)
    models = MlflowModels(places.prod, places.client)
    assert models.metrics(copy) == {"auc": 0.8}
    with places.prod.models() as prod:
        assert model_digest(prod.fetch(copy, tmp_path / "fetched").folder) == copy.sha256
    assert copy.sha256 == model_digest(places.dev.files(second))
    assert [move.after for move in moves_of(models, MODEL, "champion")] == ["2"]
    links = {link.ref.id: link.bucket for link in trace(copy.ref, allow=[places.dev.uri]).walk()}
    assert links[f"{MODEL}/{second}"] == "accessible", "a trace goes on in the registry that it came from"

    assert places.promote()["prod_champion"]["mlflow/promoted"] is False
    assert places.versions() == ["1", "2"], "the same version is copied once"
    places.dev.client.delete_model_version(MODEL, second)
    assert "has no alias 'champion'" in places.promote()
    assert places.version("@champion").version == "2"
    with places.prod.models() as prod:
        assert prod.fetch(copy, tmp_path / "later").folder.is_dir(), "the copy needs no source"


@pytest.mark.thorough
def test_files_that_were_changed_are_not_copied_nor_taken_for_the_copy(places):
    version = places.dev.train(0.7)
    places.dev.promote(version)
    (places.dev.files(version) / "model.json").write_text("{}")
    assert "is not copied: the model's files have the hash" in places.promote()
    assert places.versions() == []
    (places.dev.files(version) / "model.json").write_text('{"auc": 0.7}')
    assert places.row()["verdict"] == "holds"
    model = places.client.get_logged_model(str(places.client.get_model_version(MODEL, "1").source)[8:])
    file = Path(str(model.artifact_location).removeprefix("file://")) / "model.json"
    file.write_text("{}")
    assert "the model's files have the hash" in places.promote()
    assert places.versions() == ["1"]


@pytest.mark.thorough
def test_only_the_statement_of_these_files_counts(places, monkeypatch):
    private, public = new_key()
    first, second = places.dev.train(0.7), places.dev.train(0.8)
    places.dev.promote(first)
    assert places.row(SourcePromotion(signed=True))["why"].count("its signature cannot be verified: set") == 1
    monkeypatch.setenv(envelopes.PUBLIC_KEYS, public)
    assert "no key in DAGSTER_MLOPS_PUBLIC_KEYS has signed it" in places.row()["why"]
    monkeypatch.setenv(envelopes.SIGNING_KEY, private)
    places.dev.promote(second)
    row = places.row()
    assert row["verdict"] == "holds" and "signed by" in row["why"]
    good = Statement.read(MlflowModels(places.prod, places.client).read_file(places.version("2"), FILE))

    def judged(*rules: Any, statement: Statement = good, version: str = "2") -> str:
        """The reason of the rule on a version, with another statement beside it."""
        from dagster_mlops.promotion.case import Case
        from dagster_mlops.promotion.gate import Gate

        places.place(statement, version)
        with places.prod.models() as models:
            folder = places.folder / os.urandom(4).hex()
            case = Case(models, models.version(MODEL, version), fetch=lambda stored: models.fetch(stored, folder))
            verdict = Gate(rules or [SourcePromotion(max_age=None)], case).judge(None)
        return "" if verdict.promotes else verdict.why

    assert judged() == "" and "event log, candidate did not bring it" in judged(SourcePromotion())
    assert "and the copy is of arrival_delay/1" in judged(version="1")
    assert "the alias 'champion'" in judged(SourcePromotion(alias="staging"))
    assert "and not 'another'" in judged(SourcePromotion(source_model="another"))
    [text] = good.texts
    changed = json.loads(text)
    changed["payload"] = base64.b64encode(base64.b64decode(changed["payload"]).replace(b"0.8", b"0.9")).decode()
    assert "is not of this text" in judged(statement=Statement("champion", [json.dumps(changed)]))
    assert "not a DSSE envelope" in judged(statement=Statement("champion", ["forged"]))
    assert "it is empty" in judged(statement=Statement("champion", []))
    monkeypatch.setenv(envelopes.PUBLIC_KEYS, new_key()[1])
    monkeypatch.delenv(envelopes.SIGNING_KEY)
    assert "has signed it" in judged(), "the key of someone else"


@pytest.mark.thorough
def test_a_version_that_left_the_alias_brings_no_statement(places):
    first, second = places.dev.train(0.7), places.dev.train(0.8)
    places.dev.promote(first)
    assert places.row()["verdict"] == "holds"
    by_asset = model_copy_asset(
        name="copy", registered_model_name=MODEL, source="dev", registry="prod", candidate="delay_model"
    )
    places.dev.client.set_registered_model_alias(MODEL, "champion", second)  # by hand
    assert "does not hold 'champion' where it is from" in places.promote(copy=by_asset)["copy"]["mlflow/statement"]
    [row] = [row for row in places.promote(copy=by_asset)["copy"].values() if "where it is from" in str(row)]
    assert places.versions() == ["1"] and "by promotion of" in row
    places.dev.promote(second)
    assert "the last move there was by hand, without a gate" in places.row()["why"]


@pytest.mark.thorough
def test_a_rollback_carries_the_promotion_of_its_version_and_counts_for_no_other(places):
    first, second, third = (places.dev.train(auc) for auc in (0.7, 0.8, 0.9))
    for version in (first, second):
        places.dev.promote(version)
    assert places.dev.json("rollback", MODEL, "--reason", "late")["after"] == first
    outcome = places.promote()
    assert outcome["copy"]["mlflow/statement"] == "2 entries about champion"
    assert outcome["prod_champion"]["mlflow/promoted"] is True
    places.dev.client.set_registered_model_alias(MODEL, "champion", third)  # by hand
    places.dev.promote(second)
    places.dev.client.set_registered_model_alias(MODEL, "champion", first)
    places.dev.json("rollback", MODEL, "--reason", "it was fine", "--to", third, "--registry", places.dev.uri)
    assert "the last move there was rollback, without a gate" in places.row()["why"]


@pytest.mark.thorough
def test_a_statement_counts_for_a_time_after_the_copy_has_seen_it_in_the_source(places):
    first, second = places.dev.train(0.7), places.dev.train(0.8)
    for version in (first, second):
        places.dev.promote(version)
        assert places.row()["verdict"] == "holds"
    done = places.dev.command("rollback", MODEL, "--reason", "late", "--registry", places.dev.uri)
    assert done.exit_code == 0, done.output
    # The copy of the second has its statement, and the source has gone back.
    short = SourcePromotion(max_age=timedelta(microseconds=1))
    assert "copy saw this in the source" in places.promote_alone(short)["why"]
    assert places.promote_alone(SourcePromotion())["verdict"] == "holds", "for seven days, unless the copy looks again"
    assert places.row()["candidate"] == f"{MODEL}/1", "the copy brings what the source has gone back to"
    with pytest.raises(dg.DagsterInvalidDefinitionError, match=r"max_age=.* is not a time above 0"):
        SourcePromotion(max_age=timedelta(0))


@pytest.mark.thorough
def test_a_destination_that_is_dead_and_one_that_takes_no_files_are_errors(places):
    places.dev.promote(places.dev.train(0.7))
    places.prod = MlflowResource(tracking_uri="http://127.0.0.1:9", connect_timeout=1)
    assert "127.0.0.1:9" in places.promote()

    class Tags:
        """A registry as GTO's is."""

        tool = "gto"

        @contextmanager
        def models(self) -> Iterator[Any]:
            yield self

    places.prod = dg.ResourceDefinition.hardcoded_resource(Tags())
    assert "takes no files of a version from elsewhere" in places.promote()


def _copy_until_killed(folder: str, home: str, dies_at: str) -> None:
    """In a process: a copy that is killed at a request to the destination."""
    from mlflow import MlflowClient

    def die(*arguments: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(MlflowClient, dies_at, die)
    dev = MlflowResource(tracking_uri=f"sqlite:///{folder}/dev/mlflow.db")
    prod = MlflowResource(tracking_uri=f"sqlite:///{folder}/prod/mlflow.db")
    with dg.DagsterInstance.from_config(home) as instance:
        dg.materialize([COPY], instance=instance, resources={"dev": dev, "prod": prod})


WRITES = ["log_batch", "log_model_artifacts", "finalize_logged_model", "log_artifact", "create_model_version"]


@pytest.mark.thorough
def test_a_copy_that_is_killed_at_any_step_leaves_no_version_without_record_and_is_completed(places):
    places.dev.promote(places.dev.train(0.7))
    context = multiprocessing.get_context("spawn")
    for write in [*WRITES, "set_logged_model_tags"]:
        process = context.Process(target=_copy_until_killed, args=(str(places.folder), str(places.dev.home), write))
        process.start()
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, write
        for version in places.versions():
            copy = places.version(version)
            assert copy.upstream and copy.sha256 and copy.run_id, write
            assert MlflowModels(places.prod, places.client).read_file(copy, FILE)
    assert places.row()["verdict"] == "holds"
    assert places.versions() == ["1"]


@pytest.mark.thorough
def test_another_model_of_the_same_registry_gets_a_copy_and_the_same_is_refused(places):
    places.dev.promote(places.dev.train(0.7))
    copy = model_copy_asset(name="copy", registered_model_name=MODEL, source="dev", registry="dev", to_name="released")
    with places.dev.instance() as instance:
        assert dg.materialize([copy], instance=instance, resources={"dev": places.dev.resource}).success
    [version] = places.dev.client.search_model_versions("name='released'")
    assert version.run_id != places.dev.record("1").run_id
    places.prod = places.dev.resource
    assert f"{MODEL}/1 is a version of '{MODEL}'" in places.promote()


BASE: dict[str, Any] = {"name": "copy", "registered_model_name": "delay", "source": "dev", "registry": "mlflow"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"registry": "dev"}, "onto itself"),
        ({"to_name": ""}, "is empty"),
        ({"to_name": "a/b"}, "takes no '/'"),
        ({"alias": ""}, "is empty"),
        ({"source": "mlflow_dev", "alias": "latest"}, "not an alias that MLflow accepts"),
    ],
)
def test_a_copy_that_cannot_be_is_refused_when_definitions_load(fields, words):
    with pytest.raises(dg.DagsterInvalidDefinitionError, match=words):
        model_copy_asset(**{**BASE, **fields})
    document = {"type": "dagster_mlops.mlflow.ModelCopyComponent", "attributes": {**BASE, **fields}}
    with create_defs_folder_sandbox() as sandbox, pytest.raises(Exception) as caught:
        path = sandbox.scaffold_component(component_cls=ModelCopyComponent, defs_yaml_contents=document)
        with sandbox.load_component_and_build_defs(path):
            pass
    messages, error = [], caught.value
    while error:
        messages.append(str(error))
        error = error.__cause__
    assert words in "\n".join(messages)


def test_the_examples_on_the_page_are_definitions():
    names = pages.names(pages.blocks("promotion_environments.md", "python")[0])
    assert names["champion"].dependency_keys == {names["delay_copy"].key}
    for text, component, key in zip(
        pages.blocks("promotion_environments.md", "yaml"),
        (ModelCopyComponent, PromotionComponent),
        ("delay_copy", "prod_champion"),
        strict=True,
    ):
        with create_defs_folder_sandbox() as sandbox:
            path = sandbox.scaffold_component(component_cls=component, defs_yaml_contents=yaml.safe_load(text))
            with sandbox.load_component_and_build_defs(path) as (_, defs):
                assert [getattr(asset, "key", None) for asset in defs.assets or ()] == [dg.AssetKey(key)]
