"""The versions of a dataset: list, compare and bring back."""

from dagster_mlops.dvc.history.comparison import Diff, Facts, diff
from dagster_mlops.dvc.history.versions import Version, history, restore

__all__ = ["Diff", "Facts", "Version", "diff", "history", "restore"]
