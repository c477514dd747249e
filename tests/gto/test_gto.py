"""Git tags as a model registry: GTO itself reads what we write, and rivals, kills and a remote leave one holder."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd
import pytest
from gto import api
from gto.constants import VersionSort
from mlflow.models import infer_signature
from mlflow.sklearn import save_model
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from dagster_mlops import cli
from dagster_mlops.dvc import DvcResource
from dagster_mlops.errors import ModelVersionError, RegistryError
from dagster_mlops.evaluation import evaluation_asset, load_reference, reference_asset
from dagster_mlops.gto import GtoResource
from dagster_mlops.gto.tool import GtoTool
from dagster_mlops.lineage import trace
from dagster_mlops.lineage.production.overview import status
from dagster_mlops.promotion import promotion_asset
from dagster_mlops.promotion.history.log import moves_of
from dagster_mlops.provenance import Commit, Deployment, ModelVersion, Ref
from dagster_mlops.testing import check_registry
from tests.support import known_warnings, pages

pytestmark = [
    pytest.mark.usefixtures("warm_tools"),
    *known_warnings.DAGSTER_BETA,
    *known_warnings.MLFLOW,
    *known_warnings.MLFLOW_HINTS,
]

MLMODEL = """\
flavors:
  python_function: {loader_module: mlflow.sklearn, data: model.skops}
  sklearn: {serialization_format: skops}
signature: {inputs: '[{"name": "hour", "type": "double"}]'}
"""


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=ml", "-c", "user.email=ml@example.com"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


class Repository:
    """A git repository with a model, and a Dagster instance in which an asset registers its versions."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance, remote: str | None = None) -> None:
        self.folder, self.instance = folder, instance
        self.gto = GtoResource(repo=str(folder), remote=remote)

    def train(self, auc: float) -> str:
        """Commit new model files, and register the commit; returns the version."""
        model = self.folder / "models" / "churn"
        model.mkdir(parents=True, exist_ok=True)
        (model / "MLmodel").write_text(MLMODEL)
        (model / "model.skops").write_text(f"weights {auc}")
        (self.folder / "artifacts.yaml").write_text("churn: {type: model, path: models/churn}\n")
        git(self.folder, "add", "-A")
        git(self.folder, "commit", "-qm", f"Train to {auc}")

        @dg.asset
        def churn_model(context: dg.AssetExecutionContext, gto: GtoResource) -> dg.MaterializeResult:
            return dg.MaterializeResult(metadata=gto.register(context, "churn", metrics={"auc": auc}).to_metadata())

        result = dg.materialize([churn_model], instance=self.instance, resources={"gto": self.gto})
        [event] = result.get_asset_materialization_events()
        return str(event.materialization.metadata["gto/version"].value)

    def promote(self, *, raise_on_error: bool = True) -> dg.ExecuteInProcessResult:
        champion = promotion_asset(candidate="churn_model", registered_model_name="churn", metric="auc", registry="gto")
        assets = [dg.AssetSpec("churn_model"), champion]
        return dg.materialize(
            assets,
            instance=self.instance,
            resources={"gto": self.gto},
            selection=[champion],
            raise_on_error=raise_on_error,
        )

    def in_stage(self) -> set[str]:
        """The versions that GTO itself sees in the stage, in both of its orders."""
        views: list[Any] = [api.show(str(self.folder), "churn#champion", sort=sort) for sort in VersionSort]
        return {version["version"] for view in views for version in view}


@pytest.fixture
def instance(tmp_path):
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        yield instance


@pytest.fixture
def local(tmp_path, instance) -> Repository:
    folder = tmp_path / "models"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    git(folder, "config", "user.name", "ml")
    git(folder, "config", "user.email", "ml@example.com")
    return Repository(folder, instance)


@pytest.fixture
def shared(local, tmp_path) -> Repository:
    git(tmp_path, "init", "-q", "--bare", "server.git")
    git(local.folder, "remote", "add", "origin", str(tmp_path / "server.git"))
    return Repository(local.folder, local.instance, remote="origin")


@pytest.mark.parametrize("where", ["shared", pytest.param("local", marks=pytest.mark.thorough)])
def test_gto_keeps_the_contract_of_a_registry(request, where):
    repository: Repository = request.getfixturevalue(where)
    worse, better = repository.train(0.7), repository.train(0.8)
    check_registry(repository.gto, model="churn", worse=worse, better=better, metric="auc")


def test_the_commands_read_the_history_in_a_repository(shared, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    for auc in (0.7, 0.8):
        shared.train(auc)
        shared.promote()

    def answer(*arguments: str) -> Any:
        done = CliRunner().invoke(cli.app, [*arguments, "--registry", str(shared.folder), "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    assert [move["after"] for move in answer("history", "churn")["moves"]] == ["v0.0.1", "v0.0.2"]
    assert answer("history", "verify", "churn", "--files")["entries"] == 2
    answer("rollback", "churn", "--reason", "late orders")
    assert shared.in_stage() == {"v0.0.1"}
    # The remote that shares the registry has both the move and its entry.
    refs = git(shared.folder, "ls-remote", "origin")
    assert "churn#champion#4" in refs and "entries/00000002" in refs
    shared.promote()  # of the version that was rolled back from
    assert shared.in_stage() == {"v0.0.1"}
    assert answer("history", "verify", "churn")["holds"]
    # Someone else writes where the next entry belongs, with a line that looks like another ref.
    entries = "refs/dagster_mlops/history/churn/entries"
    (shared.folder / "false").write_text(f"x\n{entries}/00000000 y\n")
    git(shared.folder, "update-ref", f"{entries}/00000003", git(shared.folder, "hash-object", "-w", "false"))
    (shared.folder / "false").unlink()
    shared.train(0.9)
    shared.promote()
    verified = answer("history", "verify", "churn")
    assert verified["holds"] and [note["entry"] for note in verified["notes"]] == [3]


def test_a_promotion_is_what_gto_shows_and_keeps_its_history(local):
    assert local.train(0.7) == "v0.0.1"
    local.promote()
    assert local.train(0.8) == "v0.0.2"
    result = local.promote()
    [event] = result.get_asset_materialization_events()
    seen = {key: value.value for key, value in event.materialization.metadata.items()}
    assert seen["gto/promoted"] is True and seen["gto/champion_version"] == "v0.0.2"
    assert local.in_stage() == {"v0.0.2"}
    with local.gto.models() as models:
        version = models.version("churn", "@champion")
        moves = [(move.before, move.after) for move in moves_of(models, "churn", "champion")]
        assert moves == [("", "v0.0.1"), ("v0.0.1", "v0.0.2")]
        assert version.aliases == ("champion",) and version.metrics == {"auc": 0.8}
    local.train(0.75)
    local.promote()
    assert local.in_stage() == {"v0.0.2"}
    api.assign(str(local.folder), "churn", "champion", version="v0.0.1")
    with local.gto.models() as models:
        assert models.version("churn", "@champion").version == "v0.0.1", "an assignment by hand counts"


def test_a_version_is_registered_once_for_a_commit(local, instance):
    local.train(0.7)

    @dg.asset
    def again(context: dg.AssetExecutionContext, gto: GtoResource) -> str:
        return gto.register(context, "churn", metrics={"auc": 0.7}).version

    result = dg.materialize([again], instance=instance, resources={"gto": local.gto})
    assert result.output_for_node("again") == "v0.0.1"
    assert git(local.folder, "tag") == "churn@v0.0.1"


def test_clones_share_versions_moves_and_history_by_the_remote(shared, tmp_path):
    shared.train(0.7)
    shared.promote()
    git(tmp_path, "clone", "-q", str(tmp_path / "server.git"), "clone")
    clone = Repository(tmp_path / "clone", shared.instance, remote="origin")
    with clone.gto.models() as theirs, shared.gto.models() as ours:
        version = theirs.version("churn", "@champion")
        assert version == ours.version("churn", "@champion") or version.tracking_uri == str(clone.folder)
        assert [move.after for move in moves_of(theirs, "churn", "champion")] == ["v0.0.1"]
        assert theirs.metrics(version) == {"auc": 0.7}


def test_of_rivals_in_two_clones_only_one_moves_the_alias(shared, tmp_path, monkeypatch):
    first, second = shared.train(0.7), shared.train(0.8)
    git(tmp_path, "clone", "-q", str(tmp_path / "server.git"), "clone")
    clone = Repository(tmp_path / "clone", shared.instance, remote="origin")
    with shared.gto.models() as ours, clone.gto.models() as theirs:
        tag_object = theirs._tag_object

        def after_the_rival(*arguments: Any) -> str:
            assert ours.move("churn", "champion", first, expected="")
            return tag_object(*arguments)

        monkeypatch.setattr(theirs, "_tag_object", after_the_rival)
        assert not theirs.move("churn", "champion", second, expected="")
    with clone.gto.models() as models:
        assert models.version("churn", "@champion").version == first


def test_a_remote_that_refuses_the_push_leaves_the_alias_where_it_is(shared, tmp_path):
    shared.train(0.7)
    shared.promote()
    shared.train(0.8)
    hook = tmp_path / "server.git" / "hooks" / "pre-receive"
    hook.write_text(
        "#!/bin/sh\nwhile read old new ref; do case $ref in refs/tags/*) echo frozen >&2; exit 1;; esac; done\n"
    )
    hook.chmod(0o755)
    result = shared.promote(raise_on_error=False)
    assert not result.success
    [failure] = result.get_step_failure_events()
    assert "frozen" in str(failure.step_failure_data.error)
    assert shared.in_stage() == {"v0.0.1"}
    hook.unlink()
    shared.promote()
    assert shared.in_stage() == {"v0.0.2"}
    assert "churn#champion#2" in git(tmp_path / "server.git", "tag")


def test_lineage_goes_from_a_version_in_git_tags_to_its_commit(local):
    version = local.train(0.7)
    ref = Ref("gto", "model_version", f"churn/{version}", at=str(local.folder))
    chain = trace(ref, instance=local.instance)
    assert [record.version for record in chain.find(ModelVersion)] == [version]
    assert chain.find(Commit)
    git(local.folder, "tag", "-d", f"churn@{version}")
    assert GtoTool().resolve(ref).bucket == "deleted"


def test_what_is_not_there_is_said(local, tmp_path):
    with pytest.raises(RegistryError, match="is not a git repository"), GtoResource(repo=str(tmp_path / "no")).models():
        pass
    local.train(0.7)
    git(local.folder, "rm", "-rq", "models/churn")
    git(local.folder, "commit", "-qm", "Remove the model")
    git(local.folder, "tag", "-a", "churn@v0.0.2", "-m", "an empty version")
    with local.gto.models() as models:
        with pytest.raises(ModelVersionError, match=r"has no version v9\.9\.9 .* there are v0\.0\.2, v0\.0\.1"):
            models.version("churn", "v9.9.9")
        with pytest.raises(ModelVersionError, match=r"files of version v0\.0\.2 .* cannot be read: models/churn"):
            models.fetch(models.version("churn", "v0.0.2"), tmp_path)
    with (
        pytest.raises(RegistryError, match="git fetch"),
        GtoResource(repo=str(local.folder), remote="nowhere").models(),
    ):
        pass


def test_a_version_that_dvc_tracks_is_read_with_a_memory_that_no_other_user_writes_to(local, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "trainer"))
    dvc = DvcResource(repo=str(local.folder), push=False)
    dvc.init()
    (model := local.folder / "models" / "churn").mkdir(parents=True)
    (model / "MLmodel").write_text(MLMODEL)
    dvc.store("models/churn")
    (local.folder / "artifacts.yaml").write_text("churn: {type: model, path: models/churn}\n")
    git(local.folder, "add", "artifacts.yaml")
    git(local.folder, "commit", "-qm", "Track the model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "reader"))
    with local.gto.models() as models:
        stored = models.fetch(models.register("churn", rev="HEAD", version="v1.0.0", upstream=()), tmp_path)
    assert (stored.folder / "MLmodel").read_text() == MLMODEL
    assert list((tmp_path / "reader" / "dagster_mlops" / "dvc_site_cache" / "repo").iterdir())


def test_the_example_in_the_docs_loads():
    namespace = pages.names(pages.blocks("gto.md", "python")[0])
    dg.Definitions.validate_loadable(namespace["defs"])


@pytest.mark.thorough
def test_evaluation_reference_model_card_status_and_trace_work_on_versions_in_git_tags(local):
    folder, resources = local.folder, {"gto": local.gto}

    @dg.asset
    def rows() -> pd.DataFrame:
        x = np.random.default_rng(0).normal(size=200)
        return pd.DataFrame({"x": x, "late": (x > 0).astype(int)})

    def assets(strength: float) -> list[dg.AssetsDefinition]:
        @dg.asset
        def churn_model(context: dg.AssetExecutionContext, rows: pd.DataFrame) -> dg.MaterializeResult:
            fitted = LogisticRegression(C=strength).fit(rows[["x"]], rows["late"])
            shutil.rmtree(folder / "models" / "churn", ignore_errors=True)
            signature = infer_signature(rows[["x"]], fitted.predict(rows[["x"]]))
            save_model(fitted, folder / "models" / "churn", signature=signature)
            (folder / "artifacts.yaml").write_text("churn: {type: model, path: models/churn}\n")
            git(folder, "add", "-A")
            git(folder, "commit", "-qm", "Train")
            return dg.MaterializeResult(metadata=local.gto.register(context, "churn").to_metadata())

        shared: dict[str, Any] = {"model": churn_model, "rows": rows, "label": "late", "registry": "gto"}
        evaluation = evaluation_asset(
            name="evaluation", compare_with="champion", importance_rows=0, resamples=20, **shared
        )
        reference = reference_asset(name="reference", **shared)
        promotion = promotion_asset(
            candidate=churn_model,
            registered_model_name="churn",
            metric="accuracy",
            evaluation="evaluation",
            registry="gto",
        )
        return [rows, churn_model, evaluation, reference, promotion]

    dg.materialize(assets(1e-5), instance=local.instance, resources=resources)
    result = dg.materialize(assets(1.0), instance=local.instance, resources=resources)
    metadata: dict[str, dict[str, Any]] = {
        event.materialization.asset_key.to_user_string(): {
            k: v.value for k, v in event.materialization.metadata.items()
        }
        for event in result.get_asset_materialization_events()
    }
    assert metadata["champion"]["gto/promoted"] is True
    assert metadata["champion"]["gto/champion_before_accuracy"] < metadata["champion"]["gto/candidate_accuracy"]
    assert "# churn, version v0.0.2" in metadata["evaluation"]["gto/model_card"]
    frame = load_reference("churn@champion", registry=local.gto)
    assert list(frame.columns) == ["x", "prediction", "late"] and len(frame) == 200
    ref = Ref("gto", "model_version", "churn/v0.0.2", at=str(folder))
    chain = trace(ref, instance=local.instance)
    assert chain.complete and [link.ref.role for link in chain.walk()] == ["model_version", "commit"]
    deployed = Deployment(
        name="churn",
        id="1",
        package="churn:1",
        model_name="churn",
        model_version="v0.0.2",
        url="http://127.0.0.1:3000",
        state_dir=str(folder),
        prediction_log=str(folder / "predictions"),
        upstream=(ref,),
    )
    local.instance.report_runless_asset_event(dg.AssetMaterialization("live", metadata=deployed.to_metadata()))
    [production] = status(local.instance).production
    assert production.model_version and production.model_version.version == "v0.0.2"
