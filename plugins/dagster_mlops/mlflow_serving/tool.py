"""Answers for packages of MLflow's scoring server, from files alone."""

import json
from pathlib import Path

from dagster_mlops.core.inside import inside
from dagster_mlops.errors import DeploymentError, ProvenanceError
from dagster_mlops.provenance import Accessible, Answer, Deleted, Deployment, Faulty, Inaccessible, Package, Record, Ref
from dagster_mlops.serving.answers import find_deployment

FACTS_FILE = "dagster_mlops.json"


class MlflowServingTool:
    """Resolves packages (at the home of a ``MlflowServingResource``) and their deployments (at a state folder).

    >>> MlflowServingTool().resolve(Ref("mlflow_serving", "package", "delay:1", at="/nowhere")).bucket
    'inaccessible'
    """

    def resolve(self, ref: Ref) -> Answer:
        """The record that was left in the package; see :class:`dagster_mlops.tools.Tool`."""
        answers = {Package.role: _package, Deployment.role: find_deployment}
        if ref.role not in answers:
            return Faulty(f"The tool mlflow_serving has no {ref.role!r}; it has {' and '.join(answers)}.")
        if not ref.at or not Path(ref.at).is_dir():
            return Inaccessible(f"{ref.at or 'The place of ' + ref.id} is not there (another machine, or removed).")
        try:
            return answers[ref.role](ref, Path(ref.at))
        except (DeploymentError, ProvenanceError, ValueError, KeyError) as error:
            return Faulty(f"{ref} in {ref.at} cannot be read: {error}")


def _package(ref: Ref, home: Path) -> Answer:
    folder = inside(home, ref.id.replace(":", "/"), error=DeploymentError)
    if not folder.is_dir():
        return Deleted(f"{home} no longer holds {ref.id}.")
    record = stored_package(folder)
    if record is None or record.tag != ref.id or not (folder / "model" / "MLmodel").exists():
        return Faulty(f"{folder} does not hold the whole of {ref.id}.", record)
    return Accessible(record)


def stored_package(folder: Path) -> Package | None:
    """The record that a package carries; None where there is none."""
    facts = folder / FACTS_FILE
    if not facts.exists():
        return None
    record = Record.from_dict(json.loads(facts.read_text())["record"])
    return record if isinstance(record, Package) else None
