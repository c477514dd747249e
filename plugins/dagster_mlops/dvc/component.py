"""The YAML face of observed datasets."""

import dagster as dg
from pydantic import Field

from dagster_mlops.dvc.assets import observed_dataset_assets


class DatasetComponent(dg.Component, dg.Model, dg.Resolvable):
    """Observes DVC datasets that someone else versions.

    type: dagster_mlops.dvc.DatasetComponent
    attributes:
      repo: /data/vendor
      datasets:
        vendor/prices: vendor/prices.parquet
      group_name: vendor
    """

    datasets: dict[str, str] = Field(description="Dataset path in the repository by asset key ('a/b').")
    repo: str | None = Field(default=None, description="Folder of the DVC repository; else that of the resource 'dvc'.")
    rev: str = Field(default="HEAD", description="Git branch, tag or commit to follow.")
    name: str = Field(default="observed_datasets", description="Name of the observing step; unique in a code location.")
    group_name: str | None = Field(default=None, description="Group of the assets.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The observed assets."""
        assets = observed_dataset_assets(
            datasets=self.datasets, repo=self.repo, rev=self.rev, name=self.name, group_name=self.group_name
        )
        return dg.Definitions(assets=[assets])
