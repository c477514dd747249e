"""The reference code location's resources: everything embedded on one machine, or a cluster's services."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FEATURE_REPO = str(ROOT / "resources" / "feature_repo")

# Feast's own files name the state folder through this variable, so it is set before anything reads them.
STATE = Path(os.environ.setdefault("DAGSTER_MLOPS_STATE", str(ROOT / ".state")))


def deployment() -> dict[str, object]:
    """The resources of the deployment that `DAGSTER_MLOPS_RESOURCES` names: ``local`` (default) or ``cluster``.

    Raises:
        ValueError: it names neither.
    """
    name = os.environ.get("DAGSTER_MLOPS_RESOURCES", "local")
    if name == "local":
        from resources.local import resources
    elif name == "cluster":
        from resources.cluster import resources
    else:
        raise ValueError(f"DAGSTER_MLOPS_RESOURCES is {name!r}; set it to 'local' or 'cluster'.")
    return resources()
