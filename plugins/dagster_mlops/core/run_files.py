"""Names of the files and folders of a training run, for the code that writes and the code that reads them."""

import hashlib
from collections.abc import Mapping

from dagster_mlops.core.code_state import LOCK_FILES

CODE = "code"
"""The folder of a run with everything that a rerun of the training needs."""
STEP, SYSTEM, DIFF = "step.json", "system.json", "uncommitted.diff"
"""In it: the step with its config and inputs, the machine, and the uncommitted changes."""
TRIAL = "trial.json"
"""In it, for a sweep: number and parameters of the best trial."""
READS = "reads.json"
"""In it: the files and addresses without a version that the training has read, and environment variables; if any."""
PACKAGES, LICENCES = "environment.txt", "licences.json"
"""In it: the packages that were installed, and their licences."""
CONFIG_NOT_KEPT = "config_not_kept"
"""Field of the step: names of config values that were secrets. Not named after them: a list of secrets is masked."""
KEPT = (STEP, SYSTEM, DIFF, TRIAL, READS, PACKAGES, LICENCES, *LOCK_FILES)
"""All of them: a rerun reads no other file of that folder."""

DECISIVE = (
    "PYTHONHASHSEED",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
    "NVIDIA_TF32_OVERRIDE",
    "TF_DETERMINISTIC_OPS",
    "KERAS_BACKEND",
    "TZ",
)
"""Environment variables that change a training's results, and hold no secrets: a run keeps them, and no others."""

REPRODUCES_TAG = "dagster_mlops/reproduces"
"""The tag of a Dagster run that reruns a training, with the recorded MLflow run."""
TRIAL_TAG = "dagster_mlops/trial"
"""The tag of a Dagster run whose sweeps do not search, but run the trial in it, a file `TRIAL`."""

LATER_METRICS = "later_metrics"
"""The fact of a training run that names the metrics which were logged after the training, as by an evaluation."""
MONITORING = "monitoring"
"""The folder of a run with the reference distributions of its model, Parquet files."""


def files_hash(hashes: Mapping[str, str]) -> str:
    """The SHA-256 of all files of a run that a rerun reads, from the SHA-256 of each by its name."""
    lines = "".join(f"{name} {hashes[name]}\n" for name in sorted(hashes.keys() & set(KEPT)))
    return hashlib.sha256(lines.encode()).hexdigest()


def sha256_of(content: bytes) -> str:
    """The SHA-256 of the content of a file, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()
