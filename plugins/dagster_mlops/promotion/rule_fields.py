"""Rules of a promotion in YAML: the fields of each, below its `type`."""

import dataclasses
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any, Literal, Optional, Union

import dagster as dg
from pydantic import BaseModel, Discriminator, Field, Tag, create_model

from dagster_mlops.core.asset_keys import AssetLike
from dagster_mlops.core.yaml_fields import ResolvedDuration, YamlFields
from dagster_mlops.promotion.case import Rule
from dagster_mlops.promotion.rules.bounds import AtLeast, AtMost
from dagster_mlops.promotion.rules.checks import GreenChecks
from dagster_mlops.promotion.rules.fresh_data import FreshData
from dagster_mlops.promotion.rules.improvement import Better, Improvement
from dagster_mlops.promotion.rules.options import DESCRIPTION
from dagster_mlops.promotion.rules.prediction_time import PredictionTime
from dagster_mlops.promotion.rules.provenance import CompleteProvenance
from dagster_mlops.promotion.rules.slices import NotWorseOnSlices
from dagster_mlops.promotion.rules.source_promotion import SourcePromotion
from dagster_mlops.promotion.rules.stored_model import CompatibleSignature, ModelSize

TYPES: dict[str, Any] = {
    "at_least": AtLeast,
    "at_most": AtMost,
    "improvement": Improvement,
    "better": Better,
    "not_worse_on_slices": NotWorseOnSlices,
    "complete_provenance": CompleteProvenance,
    "green_checks": GreenChecks,
    "fresh_data": FreshData,
    "compatible_signature": CompatibleSignature,
    "model_size": ModelSize,
    "prediction_time": PredictionTime,
    "source_promotion": SourcePromotion,
}
"""The rules by the name of their type in YAML."""
_IN_YAML: dict[Any, Any] = {
    Sequence[AssetLike]: Sequence[str],
    timedelta: ResolvedDuration,
    timedelta | None: Optional[ResolvedDuration],  # noqa: UP045 - Annotated has no |
}


def _fields(rule: Any) -> type[YamlFields]:
    """The fields of a rule's dataclass as those of a component, and its type."""
    fields: dict[str, Any] = {
        field.name: (
            _IN_YAML.get(field.type, field.type),
            Field(
                default=... if field.default is dataclasses.MISSING else field.default,
                description=field.metadata[DESCRIPTION],
            ),
        )
        for field in dataclasses.fields(rule)
    }
    return create_model(f"{rule.__name__}Fields", __base__=YamlFields, type=(str, ...), **fields)


def _model(name: str) -> type[BaseModel]:
    """The model that Dagster reads a rule with; its type cannot be a template, because it chooses the model."""
    derived = _FIELDS[name].model()
    only: Any = Literal[name]
    described = Field(description=f"The rule {TYPES[name].__name__}.")
    return create_model(derived.__name__, __base__=derived, type=(only, described))


def rule_type(value: Any) -> str:
    """The type of a rule in YAML, or of a text, which is a template; an error message names this function."""
    if isinstance(value, str):
        return _TEMPLATE
    return str(value.get("type", "") if isinstance(value, dict) else getattr(value, "type", ""))


_TEMPLATE = "template"
_FIELDS = {name: _fields(rule) for name, rule in TYPES.items()}
_TAGGED = (*(Annotated[_model(name), Tag(name)] for name in TYPES), Annotated[str, Tag(_TEMPLATE)])
_YAML: Any = Annotated[Union[_TAGGED], Discriminator(rule_type)]  # noqa: UP007 - of as many as there are


def _rule(context: dg.ResolutionContext, value: Any) -> Rule:
    if isinstance(value, str):
        rule: Any = context.resolve_value(value)
        if isinstance(rule, str):
            raise ValueError(f"{value!r} is a text. Write {{type: at_least, …}}, or a template that gives a rule.")
        return rule
    fields = vars(_FIELDS[value.type].resolve_from_model(context, value))
    return TYPES[fields.pop("type")](**fields)


# Any, because a template may give a rule of the user's.
ResolvedRule = Annotated[Any, dg.Resolver(_rule, model_field_type=_YAML)]
"""``{type: at_least, metric: auc, limit: 0.7}``, or a template that gives a rule."""
