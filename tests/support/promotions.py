"""A model that is promoted in a real MLflow database and a real Dagster instance, without training."""

import json
import shutil
import sqlite3
from contextlib import closing
from itertools import product
from pathlib import Path
from typing import Any

import dagster as dg
from mlflow import MlflowClient
from typer.testing import CliRunner

from dagster_mlops import cli
from dagster_mlops.core.model_digest import model_digest
from dagster_mlops.mlflow import MlflowResource, promotion_asset
from dagster_mlops.mlflow.runs.lookup import RECORD
from dagster_mlops.provenance import ModelVersion

MODEL = "arrival_delay"
CHAMPION = promotion_asset(candidate="delay_model", registered_model_name=MODEL, metric="auc")


def promoted(folder: Path, *aucs: float) -> "Promotions":
    """A registry with a version for each AUC, promoted one after the other, and a saved copy of it."""
    world = Promotions(folder)
    for auc in aucs:
        world.promote(world.train(auc))
    world.save()
    return world


def full(*databases: Path) -> None:
    """Let databases write nothing, as on a full disk."""
    for file in databases:
        with closing(sqlite3.connect(file)) as database:
            names = database.execute("select name from sqlite_master where type = 'table'").fetchall()
            for (name,), verb in product(names, ("insert", "update")):
                stop = "begin select raise(fail, 'database or disk is full'); end"
                database.execute(f"create trigger full_{name}_{verb} before {verb} on {name} {stop}")


class Promotions:
    """The registry of `folder`, whose versions are promoted by the asset ``champion`` of a Dagster instance."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.file = folder, folder / "home", folder / "mlflow.db"
        self.uri = f"sqlite:///{self.file}"
        self.home.mkdir(parents=True)
        (self.home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        self.resource = MlflowResource(tracking_uri=self.uri)
        self.client: MlflowClient = self.resource.client()
        self.client.create_registered_model(MODEL)

    def save(self) -> None:
        """Keep a copy of everything, to which :meth:`reset` returns."""
        shutil.copytree(self.folder, self.folder.with_name(f"{self.folder.name}-saved"))

    def reset(self) -> None:
        """Return to the copy. The database is open: its content is replaced, and not the file."""
        saved = self.folder.with_name(f"{self.folder.name}-saved")
        for name in ("home", "models"):
            shutil.rmtree(self.folder / name)
            shutil.copytree(saved / name, self.folder / name)
        with closing(sqlite3.connect(saved / "mlflow.db")) as before, closing(sqlite3.connect(self.file)) as database:
            before.backup(database)

    def train(self, auc: float) -> str:
        """A new version with files, a record of their hash, and a run with a metric."""
        run = self.client.create_run("0")
        self.client.log_metric(run.info.run_id, "auc", auc)
        files = self.folder / "models" / run.info.run_id
        files.mkdir(parents=True)
        (files / "MLmodel").write_text("flavors: {python_function: {}}\n")
        (files / "model.json").write_text(json.dumps({"auc": auc}))
        version = str(self.client.create_model_version(MODEL, str(files), run.info.run_id).version)
        record = self.record(version, sha256=model_digest(files))
        self.client.set_model_version_tag(MODEL, version, RECORD, record.to_json())
        return version

    def files(self, version: str) -> Path:
        """The folder with the files of a version."""
        return Path(str(self.client.get_model_version(MODEL, version).source))

    def record(self, version: str, **facts: Any) -> ModelVersion:
        run_id = str(self.client.get_model_version(MODEL, version).run_id)
        return ModelVersion(name=MODEL, version=version, tracking_uri=self.uri, run_id=run_id, **facts)

    def instance(self) -> dg.DagsterInstance:
        return dg.DagsterInstance.from_config(str(self.home))

    def promote(self, version: str, by: dg.AssetsDefinition = CHAMPION) -> dict[str, Any]:
        """Materialize the version, and then the asset that promotes it; the metadata of that one."""
        made = dg.AssetMaterialization("delay_model", metadata=self.record(version).to_metadata())
        with self.instance() as instance:
            instance.report_runless_asset_event(made)
            assets = [dg.AssetSpec("delay_model"), by]
            resources = {"mlflow": self.resource}
            result = dg.materialize(assets, selection=[by], instance=instance, resources=resources)
            [event] = result.asset_materializations_for_node("champion")
        return {key: getattr(value, "value", value) for key, value in event.metadata.items()}

    def holder(self) -> str:
        """The version that holds the alias."""
        return str(self.client.get_model_version_by_alias(MODEL, "champion").version)

    def command(self, *arguments: str, home: Path | None = None) -> Any:
        """The outcome of a command."""
        return CliRunner().invoke(cli.app, [*arguments, "--dagster-home", str(home or self.home)])

    def json(self, *arguments: str) -> Any:
        """The answer of a command."""
        done = self.command(*arguments, "--json")
        assert done.exit_code in (0, 1), done.output
        return json.loads(done.stdout)
