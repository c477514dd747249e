"""What the tests of pushes run in a process of its own."""

from pathlib import Path

import pyarrow.parquet as pq

from dagster_mlops.feast import FeastResource, push


def push_file(repo: Path, file: Path) -> None:
    """Push a file's rows online and offline, in many small batches."""
    store = FeastResource(repo=str(repo)).store()
    push(store, repo, "visits_push", pq.read_table(file), to="online_and_offline", batch_size=20)
