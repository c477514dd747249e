"""The files of a training run, by names that those who write and those who read them share."""

CODE = "code"
"""The folder of a run with what it takes to run the training again."""
STEP, SYSTEM, DIFF = "step.json", "system.json", "uncommitted.diff"
"""In it: the step with its config and inputs, the machine, and the changes that were in no commit."""
TRIAL = "trial.json"
"""In it, for a sweep: number and parameters of the best trial."""
PACKAGES, LICENCES = "environment.txt", "licences.json"
"""In it: what was installed, and under which licences."""

REPRODUCES_TAG = "dagster_mlops/reproduces"
"""The tag of a Dagster run that runs a training again: the MLflow run of then."""
TRIAL_TAG = "dagster_mlops/trial"
"""The tag of a Dagster run whose sweeps do not search, but run the trial that it holds, a file `TRIAL`."""

MONITORING = "monitoring"
"""The folder of a run with the reference distributions of its model, Parquet files."""
