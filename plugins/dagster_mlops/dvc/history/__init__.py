"""The versions of a dataset: list, compare and bring back."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.dvc.history.comparison import Diff as Diff
    from dagster_mlops.dvc.history.comparison import Facts as Facts
    from dagster_mlops.dvc.history.comparison import diff as diff
    from dagster_mlops.dvc.history.versions import Version as Version
    from dagster_mlops.dvc.history.versions import history as history
    from dagster_mlops.dvc.history.versions import restore as restore

__getattr__, __dir__ = lazy_door(__name__)
