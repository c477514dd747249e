"""Answers about predictions, deployments and bentos, from files alone; no tool is imported."""

import json
import os
from pathlib import Path
from typing import Any

import yaml

from dagster_mlops.core.inside import inside
from dagster_mlops.errors import DeploymentError, ProvenanceError
from dagster_mlops.provenance import Accessible, Answer, Deleted, Faulty, Inaccessible, Package, Record, Ref

FACTS_FILE = "dagster_mlops.json"


class BentomlTool:
    """Resolves ``prediction`` (in a prediction log), ``deployment`` (in a state folder), ``package`` (in a home).

    Without a place the environment names it: ``DAGSTER_MLOPS_PREDICTION_LOG``, ``DAGSTER_MLOPS_STATE_DIR`` and
    ``BENTOML_HOME``.

    >>> BentomlTool().resolve(Ref("bentoml", "package", "delay:1", at="/nowhere")).bucket
    'inaccessible'
    """

    def resolve(self, ref: Ref) -> Answer:
        """The record that was left with the thing itself; see :class:`dagster_mlops.tools.Tool`."""
        # For lineage, not for code locations.
        from dagster_mlops.serving.answers import find_deployment, find_prediction

        ask = {"prediction": find_prediction, "deployment": find_deployment, "package": _bento}.get(ref.role)
        variables = {"prediction": "DAGSTER_MLOPS_PREDICTION_LOG", "deployment": "DAGSTER_MLOPS_STATE_DIR"}
        place = ref.at or os.environ.get(variables.get(ref.role, "BENTOML_HOME"), "")
        if ask is None:
            return Faulty(f"the bentoml resolver knows no {ref.role!r}; it knows prediction, deployment and package.")
        if not place:
            return Inaccessible(f"{ref} does not say where it is kept.")
        if not Path(place).is_dir():
            return Inaccessible(f"{place} is not there (another machine, or removed).")
        try:
            return ask(ref, Path(place))
        except (ProvenanceError, DeploymentError, ValueError, KeyError) as error:
            return Faulty(f"{ref} in {place} cannot be read: {error}")
        except OSError as error:
            return Inaccessible(f"{place} cannot be read: {error}")


def _bento(ref: Ref, home: Path) -> Answer:
    folder = inside(home / "bentos", ref.id.replace(":", "/"), error=DeploymentError)
    if not (folder / "bento.yaml").exists():
        return Deleted(f"the bento store of {home} no longer holds {ref.id}.")
    record = stored_bento(home, ref.id)
    if record is None:
        return Faulty(f"{folder} holds no record: not built by bento_asset, or its build was interrupted.")
    if record.tag != ref.id:
        return Faulty(f"{folder / 'src' / FACTS_FILE} describes another thing than {ref.id}.", record)
    return Accessible(record)


def stored_bento(home: Path, tag: str) -> Package | None:
    """The record that the bento carries, read from its files; None when the store does not hold it whole."""
    facts = inside(home / "bentos", f"{tag.replace(':', '/')}/src/{FACTS_FILE}", error=DeploymentError)
    if not facts.exists():  # written last, see _build_script.py
        return None
    record = Record.from_dict(json.loads(facts.read_text())["record"])
    return record if isinstance(record, Package) else None


def facts_file(package: Package) -> Path:
    """The file with the facts that a stored bento carries."""
    return inside(
        Path(package.home) / "bentos", f"{package.tag.replace(':', '/')}/src/{FACTS_FILE}", error=DeploymentError
    )


def is_one_process(bento: Path) -> bool:
    """True for a bento of one service with one worker, which ``upstream.serve`` can serve."""
    described = _services(bento)
    return len(described) == 1 and not (
        described[0].get("dependencies")
        or described[0].get("envs")
        or "resources" in described[0].get("config", {})
        or described[0].get("config", {}).get("workers") not in (None, 1)
        or yaml.safe_load((bento / "bento.yaml").read_text()).get("envs")
    )


def _services(bento: Path) -> list[dict[str, Any]]:
    """The services of a stored bento, as BentoML describes them; none where it is not stored."""
    file = bento / "bento.yaml"
    return (yaml.safe_load(file.read_text()).get("services") or []) if file.exists() else []
