"""What the tests of Feast's stores run in processes of their own."""

import os
import sys
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path

from feast.repo_config import load_repo_config
from feast.repo_operations import apply_total

from dagster_mlops.errors import FeatureError
from dagster_mlops.feast import FeastResource
from dagster_mlops.feast.offline.source import Window
from dagster_mlops.feast.online.materialization import alone, materialize
from dagster_mlops.feast.repository import registry
from dagster_mlops.provenance import TrainingSet

START = datetime(2024, 1, 1, tzinfo=UTC)


def days(first: float, last: float) -> Window:
    """A window in days since START."""
    return Window(START + timedelta(days=first), START + timedelta(days=last))


def apply(repo: Path) -> None:
    """Apply a Feast repository."""
    os.chdir(repo)
    sys.path.insert(0, str(repo))
    apply_total(load_repo_config(repo, repo / "feature_store.yaml"), repo, skip_source_validation=True)


def apply_unless_refused(repo: Path, told: Connection) -> None:
    """Apply a Feast repository as the plugin does, and tell why that was refused; nothing when it was not."""
    try:
        FeastResource(repo=str(repo)).apply()
        told.send("")
    except FeatureError as refusal:
        told.send(str(refusal))


def put_records(repo: Path, shop: str, who: str, count: int) -> None:
    """Leave records of training sets in the registry of the repository whose settings name the variable SHOP."""
    os.environ["SHOP"] = shop
    store = FeastResource(repo=str(repo)).store()
    for i in range(count):
        made = TrainingSet(
            feature_service="sales", project="shop", repo=str(repo), registry_hash=f"{who}{i:02d}", entity_hash="e"
        )
        registry.put_record(store, made)


def load(repo: Path, first: float, last: float) -> None:
    """Load a window of the view `visits` into the online store."""
    store = FeastResource(repo=str(repo)).store()
    with alone(store, repo, "visits", 60):
        materialize(store, "visits", days(first, last))
