"""A sweep whose trials write down what they were asked, for tests that kill it."""

import os
import time
from pathlib import Path

import dagster as dg
import optuna
import pandas as pd
from sklearn.linear_model import Ridge

from dagster_mlops.mlflow import MlflowResource
from dagster_mlops.mlflow.models.log import log_model
from dagster_mlops.mlflow.sweep import sweep_asset, sweep_trials

TRIALS = 6
ROWS = pd.DataFrame({"hour": [float(n) for n in range(20)]})


class Plan(dg.Config):
    """What the trials shall do."""

    sleep: float = 0.0
    trouble: str = ""


@dg.asset(code_version="1")  # made anew, it is the same
def training_set() -> pd.DataFrame:
    return ROWS.assign(delay=ROWS.hour * 2)


def note(*words) -> None:
    with Path(os.environ["CALLS"]).open("a") as calls:
        calls.write(" ".join(map(str, words)) + "\n")


def search(context: dg.AssetExecutionContext, config: Plan, trial: optuna.Trial, training_set: pd.DataFrame) -> float:
    """Ridge's regularisation; the smaller the better."""
    alpha = trial.suggest_float("alpha", 1e-3, 1e3, log=True)
    kind = trial.suggest_categorical("solver", ["svd", "cholesky"])
    note("start", trial.number, alpha, kind)
    for step in range(3):
        trial.report(alpha * (3 - step), step)
        if config.trouble == "prune" and trial.number % 3 == 2:
            raise optuna.TrialPruned
    time.sleep(config.sleep or float(os.environ.get("TEST_SLEEP", "0")))
    if config.trouble == "fail" or (config.trouble == "fail some" and trial.number % 4 == 1):
        raise ValueError("no memory on gpu at https://ml:hunter2@node")
    if config.trouble == "nan" and trial.number == 1:
        return float("nan")
    model = Ridge(alpha=alpha, solver=kind).fit(training_set[["hour"]], training_set["delay"])
    if config.trouble != "no model":
        log_model(model, training_set[["hour"]])
    note("done", trial.number, alpha, kind)
    return "much" if config.trouble == "text" else alpha  # pyright: ignore[reportReturnType]


OPTIONS = {"metric": "loss", "direction": "minimize", "storage": dg.EnvVar("TEST_STUDIES")}
one = sweep_asset(registered_model_name="one", n_trials=TRIALS, name="one", **OPTIONS)(search)
two = sweep_asset(registered_model_name="two", n_trials=TRIALS, n_jobs=2, name="two", **OPTIONS)(search)
steps = sweep_trials(name="steps", registered_model_name="steps", n_trials=3, pool="gpu", **OPTIONS)(search)
WORLD = dg.Definitions(
    assets=[training_set, one, two, *steps.assets],
    sensors=[steps.sensor],
    jobs=[
        dg.define_asset_job(
            "steps_trial",
            "key:steps_trials",
            executor_def=dg.in_process_executor,
        ),
        *(
            dg.define_asset_job(
                f"sweep_{asset.key.path[-1]}",
                dg.AssetSelection.assets(training_set, asset),
                executor_def=dg.in_process_executor,
            )
            for asset in (one, two)
        ),
    ],
    resources={"mlflow": MlflowResource(tracking_uri=dg.EnvVar("TEST_MLFLOW_URI"), experiment="sweeps")},
)
