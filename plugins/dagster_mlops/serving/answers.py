"""Answers for lineage about deployments and predictions, from the files of a rollout."""

from pathlib import Path

from dagster_mlops.core.extras import extra
from dagster_mlops.provenance import Accessible, Answer, Deleted, Faulty, Record, Ref
from dagster_mlops.serving.local.state import load, state_file
from dagster_mlops.serving.runtime import PredictionLog


def find_prediction(ref: Ref, log_dir: Path) -> Answer:
    """The answer of a prediction log."""
    for module in ("duckdb", "orjson", "pyarrow"):
        extra(module)
    entry = PredictionLog.find(log_dir, ref.id)
    if entry is None:
        return Deleted(f"no prediction with request id {ref.id!r} in {log_dir}; never logged, or its file was removed.")
    return Accessible(Record.from_dict(entry))


def find_deployment(ref: Ref, state_dir: Path) -> Answer:
    """The answer of a state folder."""
    name, _, deployment_id = ref.id.rpartition("/")
    path = state_file(state_dir, deployment_id)
    if not path.exists():
        return Deleted(f"{state_dir} holds no deployment {deployment_id!r}.")
    record = load(path).record
    if name and record.name != name:
        return Faulty(f"deployment {deployment_id!r} is named {record.name!r}, not {name!r}.", record)
    return Accessible(record)
