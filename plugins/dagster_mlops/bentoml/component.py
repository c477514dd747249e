"""The YAML face: from a promoted model version to a verified deployment."""

from collections.abc import Sequence

import dagster as dg
from pydantic import Field

from dagster_mlops.bentoml.assets import bento_asset
from dagster_mlops.bentoml.deployment import deployment_asset, deployment_health_check
from dagster_mlops.core.yaml_fields import Count, FromTemplate, YamlFields
from dagster_mlops.serving import Access, deployment_health_sensor
from dagster_mlops.serving.trial_fields import CanaryFields, ShadowFields


class AccessFields(YamlFields):
    """The address of the public port, its TLS, and the tokens that clients send: an ``Access``."""

    host: str = Field(
        default="127.0.0.1", description="IP address; one that other machines reach needs TLS and tokens."
    )
    certificate: str = Field(default="", description="PEM file of the server's certificate and its chain.")
    key: str = Field(default="", description="PEM file of its private key.")
    tokens: str = Field(default="", description="Name of a variable in the run's environment that holds tokens.")
    token_file: str = Field(default="", description="File of tokens, in place of the variable.")
    request_bytes: Count = Field(default=16 * 2**20, description="The most bytes of a request's body.")


class BentoDeploymentComponent(YamlFields, dg.Component):
    """A bento of the promoted model version, and its verified blue/green deployment on this machine.

    ```yaml
    type: dagster_mlops.bentoml.BentoDeploymentComponent
    attributes:
      promoted: champion
      golden_set: golden_flights
      state_dir: state/serving
      port: 8300
    ```

    The resource ``bentoml`` (a ``BentomlResource``) says which stores and which registry.
    """

    promoted: dg.ResolvedAssetKey = Field(description="Key of the asset that holds the promoted ModelVersion record.")
    golden_set: dg.ResolvedAssetKey = Field(
        description="Key of a dataframe asset whose predictions must equal the registry model's."
    )
    state_dir: str = Field(description="Folder for deployment state, logs and predictions.")
    port: int = Field(default=8300, description="Public port on 127.0.0.1; 3000 is that of Dagster's UI.")
    access: AccessFields | None = Field(
        default=None, description="Address, TLS and tokens of the port; by default, loopback without either."
    )
    replicas: Count = Field(default=2, description="Server processes behind the port, each with the whole model.")
    shadow: ShadowFields | None = Field(
        default=None,
        description="Compare a new deployment with the one before on copies of requests first; {} for defaults.",
    )
    canary: CanaryFields | None = Field(
        default=None,
        description="Give a new deployment growing shares of the traffic while it is not worse; {} for defaults.",
    )
    bento: str = Field(default="bento", description="Name of the bento asset.")
    deployment: str = Field(default="deployment", description="Name of the deployment asset.")
    service: str | None = Field(default=None, description="Your own BentoML service file; default: the generic one.")
    packages: Sequence[str] = Field(default=(), description="Pip requirements beside those the model was logged with.")
    lookup: FromTemplate | None = Field(
        default=None, description="A source of features for keys that clients send, from a template variable."
    )
    alias: str | None = Field(default="champion", description="Alias that the health check expects to be served.")
    group_name: str | None = Field(default=None, description="Asset group of both assets.")
    redeploy: bool = Field(default=True, description="Add the sensor that redeploys after a death.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Two assets, the health check and the sensor."""
        bento = bento_asset(
            name=self.bento,
            promoted=self.promoted,
            service=context.path / self.service if self.service else None,
            packages=self.packages,
            lookup=self.lookup,
            group_name=self.group_name,
        )
        deployment = deployment_asset(
            name=self.deployment,
            bento=bento,
            golden_set=self.golden_set,
            state_dir=self.state_dir,
            port=self.port,
            replicas=self.replicas,
            access=Access(**vars(self.access)) if self.access else None,
            shadow=self.shadow.shadow() if self.shadow else None,
            canary=self.canary.canary() if self.canary else None,
            group_name=self.group_name,
        )
        return dg.Definitions(
            assets=[bento, deployment],
            asset_checks=[deployment_health_check(asset=deployment, alias=self.alias)],
            sensors=[deployment_health_sensor(deployment=deployment)] if self.redeploy else [],
        )
