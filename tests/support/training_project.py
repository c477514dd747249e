"""A pipeline with one training in a git repository of its own, for tests that run the training again."""

import json
import os
import subprocess
import sys
from pathlib import Path

from dagster_mlops.lineage.reproduction.recipe import Recipe, find_recipe
from dagster_mlops.mlflow import MlflowResource

PIPELINE = """
import os, random
from pathlib import Path
import dagster as dg
import pandas as pd
from dagster_mlops.dvc import DvcResource, dvc_io_manager
from dagster_mlops.mlflow import MlflowResource, training_asset

HOME = Path(os.environ["TEST_HOME"])

@dg.asset(io_manager_key="dvc_io_manager")
def rows() -> pd.DataFrame:
    hours = [float(hour) for hour in range(24)] * 5
    return pd.DataFrame({"hour": hours, "late": [int(hour > LATE_FROM) for hour in hours]})

class Plan(dg.Config):
    strength: float = 1.0
    chance: bool = False

@training_asset(registered_model_name="delay", seed=3)
def model(config: Plan, rows: pd.DataFrame) -> None:
    import mlflow
    from mlflow.models import infer_signature
    from sklearn.linear_model import LogisticRegression
    fitted = LogisticRegression(C=config.strength).fit(rows[["hour"]], rows["late"])
    mlflow.log_params({"C": config.strength})
    luck = int.from_bytes(os.urandom(4)) if config.chance else 0
    mlflow.log_metrics({"accuracy": fitted.score(rows[["hour"]], rows["late"]), "draw": random.random() + luck})
    mlflow.log_metric("late_share", rows["late"].mean())
    mlflow.sklearn.log_model(
        fitted, name="model", signature=infer_signature(rows[["hour"]], rows["late"]),
        input_example=rows[["hour"]].head(24), pip_requirements=["scikit-learn"],
    )

defs = dg.Definitions(
    assets=[rows, model],
    resources={
        "dvc": DvcResource(repo=str(HOME / "data"), remote_url=str(HOME / "remote")),
        "dvc_io_manager": dvc_io_manager,
        "mlflow": MlflowResource(tracking_uri=f"sqlite:///{HOME}/mlflow.db", experiment="delay"),
    },
)
"""


class Project:
    """A pipeline in a git repository, and where it keeps its data, runs and Dagster history."""

    def __init__(self, home: Path, pipeline: str = PIPELINE, *, lock: str = "mlflow==3.17.2\n") -> None:
        self.home, self.code, self.pipeline = home, home / "code", pipeline
        self.uri = f"sqlite:///{home}/mlflow.db"
        (home / "dagster").mkdir(parents=True)
        (home / "dagster" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
        self.code.mkdir()
        if lock:
            (self.code / "requirements.lock").write_text(lock)
        self.git("init", "-q")
        self.write("LATE_FROM = 12\n")
        self.commit()

    def git(self, *arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=self.code, check=True, capture_output=True)

    def write(self, head: str) -> None:
        (self.code / "pipeline.py").write_text(head + self.pipeline)

    def commit(self) -> None:
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "Change")

    def train(self, *, select: str = "*", strength: float = 1.0, chance: bool = False) -> str:
        """Materialize the assets in a process of their own, and name the run."""
        config = {
            "ops": {"model": {"config": {"strength": strength, "chance": chance}}},
            "execution": {"config": {"in_process": {}}},  # a process for each step would import everything once more
        }
        materialize = ("-m", "dagster", "asset", "materialize", "-f", "pipeline.py", "--select", select)
        self.python(*materialize, "--config-json", json.dumps(config))
        client = MlflowResource(tracking_uri=self.uri).client()
        experiment = client.get_experiment_by_name("delay")
        assert experiment is not None
        return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])[0].info.run_id

    def python(self, *arguments: str) -> None:
        """Run Python in the checkout, as the pipeline's own process."""
        env = {**os.environ, "TEST_HOME": str(self.home), "DAGSTER_HOME": str(self.home / "dagster")}
        command = [sys.executable, "-W", "ignore", *arguments]
        done = subprocess.run(command, cwd=self.code, env=env, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-3000:]

    def recipe(self, what: str) -> Recipe:
        return find_recipe(what, at=self.uri)
