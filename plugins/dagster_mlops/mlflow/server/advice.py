"""Remedies for the errors of an MLflow server or database, and for a server that is too old."""

import re
from pathlib import Path

from dagster_mlops.core.advice import Advice
from dagster_mlops.core.extras import extra
from dagster_mlops.errors import TrackingError
from dagster_mlops.provenance import mask_credentials

_OLDEST_SERVER = 3  # logged models came with MLflow 3


def _upgrade(revision: str, *, uri: str) -> str:
    version = extra("mlflow").__version__
    scripts = Path(extra("mlflow.store").__path__[0], "db_migrations", "versions")
    if any(scripts.glob(f"{revision}_*.py")):
        return f"Its tables are older than MLflow {version}. Back it up, then run `mlflow db upgrade {uri}`."
    return (
        f"Its tables were made by a newer MLflow than {version}, which is installed here. Install the version that the "
        "others use."
    )


REMEDIES = (
    Advice(_upgrade, pattern=r"out-of-date database schema \(found version (\w+)"),
    Advice(
        "It wants to know who asks: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
        "MLFLOW_TRACKING_TOKEN, where the step runs.",
        pattern=r"\b401\b|Unauthorized|not authenticated",
    ),
    Advice(
        "It answers to other names only: start it with `mlflow server --allowed-hosts …`, with this name.",
        pattern="Invalid Host header",
    ),
    Advice(
        "The user that MLFLOW_TRACKING_USERNAME or MLFLOW_TRACKING_TOKEN names may not do this there: grant it.",
        pattern=r"\b403\b|Permission denied|PERMISSION_DENIED",
    ),
    Advice(
        "It refuses more requests: raise its limit, run fewer steps at once (pool), or try later (retry_policy).",
        pattern=r"\b429\b|too many 429",
    ),
    Advice(
        "What stands in front of it does not reach it: start it, or try later (retry_policy).",
        pattern=r"too many 50[234] error",
    ),
    Advice(
        "Start the server (`mlflow server --workers 1 …`), or correct tracking_uri. MLFLOW_TRACKING_USERNAME, "
        "_PASSWORD and _TOKEN hold credentials."
    ),
)
"""What to do about an error of MLflow's server or database at `uri`, by its masked text."""


def check_version(uri: str, *, timeout: float) -> None:
    """Refuse a server that is too old to keep logged models, before the training rather than after it.

    A server, or a proxy in front of it, that does not tell its version is taken as it is.

    Raises:
        TrackingError: the server says that it is too old.
    """
    if not uri.startswith("http"):
        return
    requests = extra("requests", extra="mlflow")
    try:
        told = requests.get(f"{uri.rstrip('/')}/version", timeout=timeout)
    except requests.RequestException:
        return
    major = re.match(r"(\d+)\.\d", told.text) if told.status_code == 200 else None
    if major and int(major[1]) < _OLDEST_SERVER:
        raise TrackingError(
            f"MLflow at {mask_credentials(uri)} has version {told.text.strip()[:20]}, which keeps no logged models: "
            f"MLflow {extra('mlflow').__version__} needs them. Upgrade the server and, by `mlflow db upgrade`, "
            "its database."
        )
