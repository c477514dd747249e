"""The YAML face of trials: fields of a canary and of a shadow. What is left out has the default of its option."""

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from dagster_mlops.core.yaml_fields import Count, NotNegative, Positive, Share, YamlFields
from dagster_mlops.serving.rollout_verdict.options import Canary, Shadow


class TrialFields(YamlFields):
    """Fields that both have."""

    error_rate: Share | None = Field(
        default=None, description="Chance that a deployment which is not worse is taken back on evidence; 0.01."
    )
    more_errors: Share | None = Field(
        default=None, description="Growth of the share of failed requests that it must not have; 0.01."
    )
    slowdown: Positive | None = Field(default=None, description="Growth of latency that it must not have; 0.2.")
    max_requests: Count | None = Field(default=None, description="Requests after which an open verdict is: back.")
    max_seconds: Positive | None = Field(default=None, description="Seconds after which an open verdict is: back.")

    def options(self) -> dict[str, Any]:
        """Those that are given."""
        return {name: value for name, value in vars(self).items() if value is not None}


class CanaryFields(TrialFields):
    """A ``Canary``: growing shares of the traffic."""

    steps: Sequence[Share] | None = Field(
        default=None, description="Shares of the traffic, smallest first; [0.01, 0.1, 0.5]."
    )
    output_shift: Share | None = Field(
        default=None,
        description="Share of the predictions that may be others than those of the deployment before; 0.2.",
    )

    def canary(self) -> Canary:
        """The options."""
        steps = {"steps": tuple(self.steps)} if self.steps else {}
        return Canary(**{**self.options(), **steps})


class ShadowFields(TrialFields):
    """A ``Shadow``: a copy of each request, whose answers go to no one."""

    tolerance: NotNegative | None = Field(
        default=None, description="Largest difference of two predictions that count as the same; 1e-9."
    )
    tolerated_differences: Share | None = Field(
        default=None, description="Share of the inputs on which predictions may differ; 0.01."
    )
    differences: Share | None = Field(
        default=None, description="Share of the inputs on which they must not differ; 0.05."
    )

    def shadow(self) -> Shadow:
        """The options."""
        return Shadow(**self.options())
