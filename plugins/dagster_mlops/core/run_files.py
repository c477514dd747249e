"""Names of the files and folders of a training run, for the code that writes and the code that reads them."""

CODE = "code"
"""The folder of a run with everything that a rerun of the training needs."""
STEP, SYSTEM, DIFF = "step.json", "system.json", "uncommitted.diff"
"""In it: the step with its config and inputs, the machine, and the uncommitted changes."""
TRIAL = "trial.json"
"""In it, for a sweep: number and parameters of the best trial."""
PACKAGES, LICENCES = "environment.txt", "licences.json"
"""In it: the packages that were installed, and their licences."""

REPRODUCES_TAG = "dagster_mlops/reproduces"
"""The tag of a Dagster run that reruns a training, with the recorded MLflow run."""
TRIAL_TAG = "dagster_mlops/trial"
"""The tag of a Dagster run whose sweeps do not search, but run the trial in it, a file `TRIAL`."""

MONITORING = "monitoring"
"""The folder of a run with the reference distributions of its model, Parquet files."""
