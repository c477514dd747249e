"""What MLflow says when it cannot be used, as what to do about it."""

import re
from pathlib import Path

from dagster_mlops.core.extras import extra
from dagster_mlops.errors import TrackingError
from dagster_mlops.provenance import mask_credentials

_OLDEST_SERVER = 3  # logged models came with MLflow 3


def what_to_do(text: str, uri: str) -> str:
    """The next step for somebody who got this error from a server or database at `uri`, which is masked."""
    if found := re.search(r"out-of-date database schema \(found version (\w+)", text):
        here, scripts = (
            extra("mlflow").__version__,
            Path(extra("mlflow.store").__path__[0], "db_migrations", "versions"),
        )
        if any(scripts.glob(f"{found[1]}_*.py")):
            return f"Its tables are older than MLflow {here}. Back it up, then run `mlflow db upgrade {uri}`."
        return (
            f"Its tables were made by a newer MLflow than {here}, which is installed here. Install the version that "
            "the others use."
        )
    if re.search(r"\b401\b|Unauthorized|not authenticated", text):
        return (
            "It wants to know who asks: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "MLFLOW_TRACKING_TOKEN, where the step runs."
        )
    if "Invalid Host header" in text:
        return "It answers to other names only: start it with `mlflow server --allowed-hosts …`, with this name."
    if re.search(r"\b403\b|Permission denied|PERMISSION_DENIED", text):
        return "Whoever MLFLOW_TRACKING_USERNAME or MLFLOW_TRACKING_TOKEN name may not do this there: grant it."
    if re.search(r"\b429\b|too many 429", text):
        return "It refuses more requests: raise its limit, run fewer steps at once (pool), or try later (retry_policy)."
    if re.search(r"too many 50[234] error", text):
        return "What stands in front of it does not reach it: start it, or try later (retry_policy)."
    return (
        "Start the server (`mlflow server --workers 1 …`), or mend tracking_uri. MLFLOW_TRACKING_USERNAME, _PASSWORD "
        "and _TOKEN hold credentials."
    )


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
