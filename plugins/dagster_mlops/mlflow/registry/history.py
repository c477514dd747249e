"""The history of a registered model in MLflow: params of one run, which MLflow lets no one change.

A param is created once, in one step of the database: of two promoters that write the same number, one is refused. The
run is named by a tag of the registered model, and found by its own tag where that one is gone.
"""

import hashlib
import re
from collections.abc import Mapping

from dagster_mlops.errors import HistoryError
from dagster_mlops.mlflow import upstream
from dagster_mlops.mlflow.lazy import MlflowClient
from dagster_mlops.mlflow.runs import lookup as runs
from dagster_mlops.mlflow.server.client import EXISTS, INVALID, or_none, refused
from dagster_mlops.provenance import NAMESPACE

EXPERIMENT = "dagster-mlops history"
"""Experiment of these runs."""
RUN, OF, HEAD = f"{NAMESPACE}.history", f"{NAMESPACE}.history_of", f"{NAMESPACE}.history_head"
"""Tags: of a registered model with the id of the run and the hash of the model's name; of the run with that hash; of a
registered model with its head."""
_PART = 5500  # characters; MLflow's limit for a param is 6000
_ENTRY = re.compile(r"(\d{8})")
_FIRST_PART = re.compile(r"([0-9a-f]{16}) (\d{1,4}) ")


def entries(client: MlflowClient, model: str) -> dict[int, str]:
    """The entries by number; the param itself where it is not an entry with all its parts.

    Raises:
        HistoryError: the run is gone.
    """
    run_id = _run_id(client, model)
    if not run_id:
        return {}
    run = or_none(client.get_run, run_id)
    if run is None or run.info.lifecycle_stage == "deleted":
        raise HistoryError(
            f"the history of {model!r} is gone: MLflow run {run_id} of experiment {EXPERIMENT!r} was deleted. "
            "Restore the run in MLflow; if it was purged, write its entries again from Dagster's event log: "
            f"`dagster-mlops history restore {model}`."
        )
    params = run.data.params
    return {int(key): _whole(params, key) for key in sorted(params) if _ENTRY.fullmatch(key)}


def append(client: MlflowClient, model: str, number: int, entry: str) -> bool:
    """Write an entry: first its further parts under the entry's own hash, then the param that makes it the number's."""
    run_id = _run_id(client, model) or _new_run(client, model)
    if number == 0:
        _name_run(client, model, run_id)
    sha, parts = _hash(entry), [entry[first : first + _PART] for first in range(0, len(entry), _PART)]
    for order, part in enumerate(parts[1:], 1):
        client.log_param(run_id, f"{number:08d}.{sha}.{order}", part)
    return not refused(INVALID, lambda: client.log_param(run_id, f"{number:08d}", f"{sha} {len(parts)} {parts[0]}"))


def head(client: MlflowClient, model: str) -> str:
    registered = or_none(client.get_registered_model, model)
    return registered.tags.get(HEAD, "") if registered else ""


def keep_head(client: MlflowClient, model: str, text: str) -> None:
    upstream.model_registry(client).set_registered_model_tag(model, HEAD, text)


def renew(client: MlflowClient, model: str) -> None:
    """Restore the deleted run of a history; a new one takes the place of a run that was purged."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment and experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    run = or_none(client.get_run, _run_id(client, model) or "none")
    if run is None:
        _name_run(client, model, _new_run(client, model))
    elif run.info.lifecycle_stage == "deleted":
        client.restore_run(run.info.run_id)


def _whole(params: Mapping[str, str], key: str) -> str:
    match = _FIRST_PART.match(params[key])
    if not match:
        return params[key]
    names = [f"{key}.{match[1]}.{order}" for order in range(1, int(match[2]))]
    text = "".join([params[key][match.end() :], *(params.get(name, "") for name in names)])
    return text if _hash(text) == match[1] else params[key]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _run_id(client: MlflowClient, model: str) -> str:
    """The run, by the tag of the model if it is of this name: a model that was renamed brings that of another one."""
    registered = or_none(client.get_registered_model, model)
    run_id, _, owner = (registered.tags.get(RUN, "") if registered else "").partition(" ")
    if run_id and owner == _hash(model):
        return run_id
    experiment = client.get_experiment_by_name(EXPERIMENT)
    # By the hash: a name may have quotes, with which a filter says something else.
    search = runs.search(client, [experiment.experiment_id], {OF: _hash(model)}) if experiment else iter(())
    run = next(search, None)
    return run.info.run_id if run else ""


def _new_run(client: MlflowClient, model: str) -> str:
    refused(EXISTS, lambda: client.create_experiment(EXPERIMENT))  # another process may have created it
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None or experiment.lifecycle_stage == "deleted":
        raise HistoryError(f"MLflow's experiment {EXPERIMENT!r} was deleted. Restore it: it has the histories.")
    run = client.create_run(experiment.experiment_id, run_name=f"history of {model}", tags={OF: _hash(model)})
    client.set_terminated(run.info.run_id, "FINISHED")
    return run.info.run_id


def _name_run(client: MlflowClient, model: str, run_id: str) -> None:
    upstream.model_registry(client).set_registered_model_tag(model, RUN, f"{run_id} {_hash(model)}")
