"""What the trials of a sweep cost beside plain Optuna with a child run of MLflow for each, written by hand.

Processor seconds, all on sqlite, with the databases of every tool made before. Both sides store a model whenever a
trial is the best so far, and register the last. DAGSTER_MLOPS_TRIALS (60) is the number of trials; that of a sweep of
two is what a sweep costs besides.
"""

import os
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.measure import environment, python, show, told

ROUNDS, FEW, TARGET = 3, 2, 1.3
TRIALS = int(os.environ.get("DAGSTER_MLOPS_TRIALS", "60"))
SHARED = """
import json, os, time, warnings
warnings.simplefilter("ignore")
import mlflow, optuna, numpy as np, pandas as pd, dagster as dg
from sklearn.linear_model import Ridge
from dagster_mlops.mlflow import MlflowResource
from dagster_mlops.mlflow.models import log_model
from dagster_mlops.mlflow.sweep import sweep_asset
optuna.logging.set_verbosity(optuna.logging.ERROR)
X = pd.DataFrame({"a": np.arange(50.0)})
def fit(trial):
    alpha, beta = trial.suggest_float("alpha", 0, 1), trial.suggest_float("beta", 0, 1)
    return Ridge(alpha=alpha + 0.01).fit(X, X["a"]), (alpha - 0.3) ** 2 + (beta - 0.5) ** 2
def cpu(search, folder, trials):
    os.makedirs(folder)
    mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder}/m.db").search_experiments(max_results=1)
    optuna.storages.RDBStorage(f"sqlite:///{folder}/o.db")
    before = time.process_time()
    search(folder, trials)
    return time.process_time() - before
"""
BY_HAND = """
def search(folder, trials):
    mlflow.set_tracking_uri(f"sqlite:///{folder}/m.db")
    mlflow.set_experiment("sweep")
    sampler = optuna.samplers.TPESampler(seed=0)
    study = optuna.create_study(storage=f"sqlite:///{folder}/o.db", direction="minimize", sampler=sampler)
    best = []
    def objective(trial):
        with mlflow.start_run(nested=True, run_name=f"trial {trial.number}"):
            model, value = fit(trial)
            mlflow.log_params(trial.params)
            mlflow.log_metric("loss", value)
            if not best or value < best[-1][0]:
                signature = mlflow.models.infer_signature(X, model.predict(X))
                info = mlflow.sklearn.log_model(
                    model, name="model", signature=signature, input_example=X.head(), pip_requirements=["scikit-learn"],
                    serialization_format="cloudpickle",
                )
                best.append((value, info))
            return value
    with mlflow.start_run(run_name="sweep"):
        study.optimize(objective, n_trials=trials)
        mlflow.register_model(best[-1][1].model_uri, "sweep")
"""
SWEEP = """
instance = dg.DagsterInstance.ephemeral()
def search(folder, trials):
    options = {"metric": "loss", "direction": "minimize", "storage": f"sqlite:///{folder}/o.db"}
    @sweep_asset(registered_model_name="sweep", n_trials=trials, system_metrics=False, **options)
    def sweep(trial):
        model, value = fit(trial)
        log_model(model, X)
        return value
    resource = MlflowResource(tracking_uri=f"sqlite:///{folder}/m.db", experiment="sweep")
    quiet = {"loggers": {"console": {"config": {"log_level": "WARNING"}}}}
    dg.materialize([sweep], instance=instance, resources={"mlflow": resource}, run_config=quiet)
"""
MEASURE = """
cpu(search, {folder!r} + "/warm", 2)
print(json.dumps([cpu(search, {folder!r} + f"/{{trials}}", trials) for trials in ({few}, {trials})]))
"""


def run(rounds: int | None = None) -> dict[str, Any]:
    """Both sides in turn, each in a process of its own that has done a sweep of two trials before."""
    seconds: dict[str, list[list[float]]] = {"by hand": [], "sweep_asset": []}
    for _ in range(rounds or ROUNDS):
        for side, search in (("by hand", BY_HAND), ("sweep_asset", SWEEP)):
            with tempfile.TemporaryDirectory(prefix="sweeps-") as folder:
                code = SHARED + search + MEASURE.format(folder=folder, few=FEW, trials=TRIALS)
                output = told(python(code), environment(Path(folder, "state")))
                seconds[side].append(list(map(float, output.strip().splitlines()[-1].strip("[]").split(","))))
    results = {
        side: {
            f"{FEW} trials": median(few for few, _ in pairs),
            "another trial": median((many - few) / (TRIALS - FEW) for few, many in pairs),
            f"{TRIALS} trials": median(many for _, many in pairs),
        }
        for side, pairs in seconds.items()
    }
    rows = [
        (part, results["by hand"][part], results["sweep_asset"][part], results["sweep_asset"][part] / by_hand)
        for part, by_hand in results["by hand"].items()
    ]
    show(f"a sweep, at most {TARGET:g} times by hand", ["CPU s", "by hand", "sweep_asset", "ratio"], rows)
    return results
