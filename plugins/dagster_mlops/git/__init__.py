"""Git: the commits that code and data come from."""

from dagster_mlops.git.tool import GitTool

__all__ = ["GitTool"]
