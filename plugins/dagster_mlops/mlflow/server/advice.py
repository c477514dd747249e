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
        f"Its tables were created by a newer MLflow than {version}, which is installed here. Install the newer version."
    )


REMEDIES = (
    Advice(_upgrade, pattern=r"out-of-date database schema \(found version (\w+)"),
    Advice(
        "It needs credentials: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
        "MLFLOW_TRACKING_TOKEN, where the step runs.",
        pattern=r"\b401\b|Unauthorized|not authenticated",
    ),
    Advice(
        "It does not accept this host name: start it with `mlflow server --allowed-hosts …`, with the name.",
        pattern="Invalid Host header",
    ),
    Advice(
        "The user of MLFLOW_TRACKING_USERNAME or MLFLOW_TRACKING_TOKEN lacks the permission: grant it.",
        pattern=r"\b403\b|Permission denied|PERMISSION_DENIED",
    ),
    Advice(
        "It limits the rate of requests: raise the limit, run fewer steps at once (pool), or try later (retry_policy).",
        pattern=r"\b429\b|too many 429",
    ),
    Advice(
        "The proxy in front of it does not reach it: start it, or try later (retry_policy).",
        pattern=r"too many 50[234] error",
    ),
    Advice(
        "Start the server (`mlflow server --workers 1 …`), or correct tracking_uri. MLFLOW_TRACKING_USERNAME, "
        "_PASSWORD and _TOKEN hold credentials."
    ),
)
"""Remedies for an error of MLflow's server or database at `uri`, by the error's masked text."""


def check_version(uri: str, *, timeout: float) -> None:
    """Refuse a server that is too old for logged models before the training, not after it.

    A server, or a proxy in front of it, that does not report its version is accepted.

    Raises:
        TrackingError: the server is too old.
    """
    if not uri.startswith("http"):
        return
    requests = extra("requests", extra="mlflow")
    try:
        response = requests.get(f"{uri.rstrip('/')}/version", timeout=timeout)
    except requests.RequestException:
        return
    major = re.match(r"(\d+)\.\d", response.text) if response.status_code == 200 else None
    if major and int(major[1]) < _OLDEST_SERVER:
        raise TrackingError(
            f"MLflow at {mask_credentials(uri)} has version {response.text.strip()[:20]}, which has no logged models: "
            f"MLflow {extra('mlflow').__version__} needs them. Upgrade the server and, with `mlflow db upgrade`, "
            "its database."
        )
