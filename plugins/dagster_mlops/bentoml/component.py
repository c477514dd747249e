"""The YAML face: from a promoted model version to a verified deployment."""

from collections.abc import Mapping, Sequence
from typing import Literal

import dagster as dg
from pydantic import Field

from dagster_mlops.bentoml.assets import bento_asset
from dagster_mlops.bentoml.deployment import deployment_asset, deployment_health_check
from dagster_mlops.core.yaml_fields import Count, FromTemplate, NotNegative, Positive, Share, YamlFields
from dagster_mlops.serving import Access, deployment_health_sensor
from dagster_mlops.serving.runtime import LogRules
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


class LogRulesFields(YamlFields):
    """The rules of the prediction log: ``LogRules``."""

    private: Mapping[str, Literal["drop", "hash"]] = Field(
        default={}, description="Features that are left out (drop) or logged as a keyed hash (hash)."
    )
    share: Share = Field(default=1.0, description="Share of the rows that are logged.")
    refused: Literal["error", "answer"] = Field(
        default="error", description="Answer to a client whose rows the disk refuses: an error, or the prediction."
    )
    patience: Positive = Field(default=10.0, description="Seconds that a request waits for a busy disk.")


# Options of `deployment_asset` that YAML has in the same form.
_AS_THEY_ARE = (
    *("golden_set", "state_dir", "port", "tolerance", "golden_rows", "route", "public", "prediction_log"),
    *("log_sync_seconds", "environment", "promoted_to", "replicas", "threads", "ready_timeout", "drain_seconds"),
    *("request_timeout", "group_name"),
)


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
    threads: Count | None = Field(default=None, description="Threads of each process; those of the service by default.")
    tolerance: NotNegative = Field(
        default=1e-9, description="Largest difference between a served prediction and one of the registered model."
    )
    golden_rows: Count = Field(default=200, description="The most rows of the golden set that are compared.")
    route: str = Field(default="", description="Route of the predictions, where a service of your own has another.")
    public: Sequence[str] = Field(default=(), description="More paths that clients may reach, such as /openapi.json.")
    prediction_log: str | None = Field(
        default=None, description="Folder of the prediction log; `predictions` in `state_dir` by default."
    )
    log_sync_seconds: NotNegative = Field(
        default=1, description="Seconds of predictions that a power cut may cost; with 0, none that was answered."
    )
    log_rules: LogRulesFields | None = Field(
        default=None, description="Private features, the share that is logged, and what follows a refusal of the disk."
    )
    environment: Mapping[str, str] | None = Field(
        default=None, description="More environment variables for the servers."
    )
    promoted_to: str = Field(
        default="", description="Alias to which the version's promotion must be on record, signed, in its history."
    )
    ready_timeout: Positive = Field(default=120, description="Seconds in which a new deployment must be ready.")
    drain_seconds: NotNegative | None = Field(
        default=None, description="The most seconds that the deployment before gets to answer what it has."
    )
    request_timeout: Positive = Field(default=30, description="Seconds after which a request ends.")
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
            **{option: getattr(self, option) for option in _AS_THEY_ARE},
            name=self.deployment,
            bento=bento,
            log_rules=LogRules(**vars(self.log_rules)) if self.log_rules else None,
            access=Access(**vars(self.access)) if self.access else None,
            shadow=self.shadow.shadow() if self.shadow else None,
            canary=self.canary.canary() if self.canary else None,
        )
        return dg.Definitions(
            assets=[bento, deployment],
            asset_checks=[deployment_health_check(asset=deployment, alias=self.alias)],
            sensors=[deployment_health_sensor(deployment=deployment)] if self.redeploy else [],
        )
