"""The stages of a `dvc.yaml`: how they are read, run and shown."""

from dagster_mlops.dvc.stages.project import Out, Project, Stage, TrackedData, load_project

__all__ = ["Out", "Project", "Stage", "TrackedData", "load_project"]
