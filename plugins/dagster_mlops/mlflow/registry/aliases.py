"""Aliases of registered models: which version holds one, and the moves that led there."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dagster_mlops.core.extras import extra
from dagster_mlops.errors import ModelVersionError
from dagster_mlops.mlflow.registry.versions import version_record
from dagster_mlops.provenance import NAMESPACE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as MlflowModelVersion

# Tag of a model version: a JSON list of the alias moves it took part in, oldest first.
PROMOTED = f"{NAMESPACE}.promoted"
INTENDED, DONE = "intended", "done"  # states of such a move


class Registry:
    """One alias of one registered model."""

    def __init__(self, client: "MlflowClient", name: str, alias: str) -> None:
        self.client, self.name, self.alias = client, name, alias

    def holder(self) -> "MlflowModelVersion | None":
        """The version that holds the alias."""
        try:
            return self.client.get_model_version_by_alias(self.name, self.alias)
        except extra("mlflow.exceptions").MlflowException as error:
            # A missing alias is INVALID_PARAMETER_VALUE, a missing model RESOURCE_DOES_NOT_EXIST.
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
                raise
            return None

    def version(self, version: str) -> "MlflowModelVersion":
        """A version by its number.

        Raises:
            ModelVersionError: it is not there.
        """
        try:
            return self.client.get_model_version(self.name, version)
        except extra("mlflow.exceptions").MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise ModelVersionError(
                f"{self.name!r} has no version {version}; it was deleted after training. Train again, then promote."
            ) from error

    def metric(self, version: "MlflowModelVersion", metric: str) -> float:
        """A metric of the run that made the version; of the version's record when the run is gone.

        Raises:
            ModelVersionError: the run has no such metric.
        """
        try:
            metrics = self.client.get_run(str(version.run_id)).data.metrics
        except extra("mlflow.exceptions").MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            metrics = version_record(version, "").metrics
        if metric not in metrics:
            raise ModelVersionError(
                f"version {version.version} of {self.name!r} has no metric {metric!r}; run {version.run_id} has "
                f"{', '.join(sorted(metrics)) or 'none'}. Log it with mlflow.log_metric in the training function, or "
                "promote on one that is there."
            )
        return float(metrics[metric])

    def events(self, version: str) -> list[dict[str, Any]]:
        """The alias moves that a version took part in."""
        return json.loads(self.version(version).tags.get(PROMOTED, "[]"))

    def write_event(self, version: str, event: Mapping[str, Any]) -> None:
        """Add an alias move to a version's history, or complete the one that was intended before."""
        events = [known for known in self.events(version) if not _is_earlier_form(known, event)]
        self.client.set_model_version_tag(self.name, version, PROMOTED, json.dumps([*events, dict(event)]))


def _is_earlier_form(known: Mapping[str, Any], event: Mapping[str, Any]) -> bool:
    """Whether `known` is the same move, intended before or written twice because of a kill in between."""
    same = all(known[name] == event[name] for name in ("alias", "from", "to"))
    return same and (known["state"] == INTENDED or known["at"] == event["at"])
