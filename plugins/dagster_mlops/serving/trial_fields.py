"""The YAML face of trials: fields of a canary and of a shadow, with the defaults of their options."""

from collections.abc import Sequence
from typing import Annotated

import dagster as dg
from pydantic import Field, conint

from dagster_mlops.core.yaml_fields import Count, NotNegative, Positive, Share, YamlFields
from dagster_mlops.serving.rollout_verdict.options import Canary, Limits, Shadow

_Number = Annotated[int, dg.Resolver.default(model_field_type=conint(ge=0))]


class TrialFields(YamlFields):
    """Fields that both have."""

    error_rate: Share = Field(
        default=Limits.error_rate, description="Chance that a deployment which is not worse goes back on evidence."
    )
    miss_rate: Share = Field(
        default=Limits.miss_rate, description="Chance that one that does just the harm goes on, for each kind of harm."
    )
    more_errors: Share = Field(default=Limits.more_errors, description="Harm: growth of the share of failed requests.")
    slowdown: Positive | None = Field(
        default=Limits.slowdown, description="Harm: growth of latency; null to leave latency out."
    )
    tolerated_slowdown: NotNegative = Field(
        default=Limits.tolerated_slowdown, description="Growth of latency that is never a reason to go back."
    )
    grace: _Number = Field(default=Limits.grace, description="Requests whose latency does not count.")
    max_requests: Count = Field(
        default=Limits.max_requests, description="Requests after which an open verdict is: back."
    )
    max_seconds: Positive = Field(
        default=Limits.max_seconds, description="Seconds after which an open verdict is: back."
    )
    look_seconds: Positive = Field(default=Limits.look_seconds, description="Seconds between looks.")


class CanaryFields(TrialFields):
    """A ``Canary``: growing shares of the traffic."""

    steps: Sequence[Share] = Field(default=Canary.steps, description="Shares of the traffic, smallest first.")
    output_shift: Share | None = Field(
        default=Canary.output_shift,
        description="Share of the predictions that may be others than those of the deployment before; null for any.",
    )

    def canary(self) -> Canary:
        """The options."""
        return Canary(**{**vars(self), "steps": tuple(self.steps)})


class ShadowFields(TrialFields):
    """A ``Shadow``: a copy of each request, whose answers go to no one."""

    tolerance: NotNegative = Field(
        default=Shadow.tolerance, description="Largest difference of two predictions that count as the same."
    )
    tolerated_differences: Share = Field(
        default=Shadow.tolerated_differences, description="Share of the inputs on which predictions may differ."
    )
    differences: Share = Field(
        default=Shadow.differences, description="Harm: the share of the inputs on which they differ."
    )

    def shadow(self) -> Shadow:
        """The options."""
        return Shadow(**vars(self))
