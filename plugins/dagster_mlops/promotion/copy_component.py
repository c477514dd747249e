"""Copies of versions in YAML."""

import dagster as dg
from pydantic import Field

from dagster_mlops.core.yaml_fields import YamlFields
from dagster_mlops.promotion.model_copy import model_copy_asset


class ModelCopyComponent(YamlFields, dg.Component):
    """Copies a version of one registry into another, with its record and the evidence of its promotion.

    ```yaml
    type: dagster_mlops.mlflow.ModelCopyComponent
    attributes:
      name: delay_copy
      registered_model_name: delay
      source: mlflow_dev
      registry: mlflow_prod
    ```
    """

    name: str = Field(description="Name of the asset.")
    registered_model_name: str = Field(description="The registered model in the source.")
    source: str = Field(description="Key of the resource that holds the models in the source.")
    registry: str = Field(default="mlflow", description="Key of the resource that gets the copy.")
    to_name: str | None = Field(
        default=None, description="Model that gets the copy; by default, named as in the source."
    )
    alias: str = Field(default="champion", description="Alias of the version in the source, and of its evidence.")
    candidate: str | None = Field(
        default=None, description="Key of the asset that made the version, in place of the one that holds `alias`."
    )
    group_name: str | None = Field(default=None, description="Asset group.")
    pool: str | None = Field(default=None, description="Dagster pool.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The asset."""
        return dg.Definitions(assets=[model_copy_asset(**vars(self))])
