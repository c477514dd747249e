"""The stages of a `dvc.yaml`: how they are read, run and shown."""

from typing import TYPE_CHECKING

from dagster_mlops.core.lazy_door import lazy_door

if TYPE_CHECKING:
    from dagster_mlops.dvc.stages.project import Out as Out
    from dagster_mlops.dvc.stages.project import Project as Project
    from dagster_mlops.dvc.stages.project import Stage as Stage
    from dagster_mlops.dvc.stages.project import TrackedData as TrackedData
    from dagster_mlops.dvc.stages.project import load_project as load_project

__getattr__, __dir__ = lazy_door(__name__)
