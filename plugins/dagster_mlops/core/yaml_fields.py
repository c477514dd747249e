"""Types of YAML fields of components, beside those that Dagster resolves by itself."""

import functools
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import dagster as dg
from pydantic import BaseModel, Field, confloat, conint, constr

_TEXT = {"type": "string"}
_TEMPLATE = {"type": "string", "pattern": r"\{\{"}
_NOTHING = {"type": "null"}


class YamlFields(dg.Model, dg.Resolvable):
    """Fields with a JSON schema from which editors and ``dg check yaml`` can explain them and name a wrong value.

    The schema that Dagster derives loses the description of each field that has a default. And it allows a string in
    place of anything, because it may be a template: about one wrong value in a list, it only reports that the list is
    neither.
    """

    @classmethod
    def model(cls) -> type[BaseModel]:
        """The pydantic model that Dagster reads from YAML."""
        derived = super().model()
        extra = derived.model_config.get("json_schema_extra")
        if isinstance(extra, dict):  # as Dagster derived it, once for each class
            derived.model_config["json_schema_extra"] = functools.partial(_explain, cls, extra)
        return derived

    @classmethod
    def resolve_from_model(cls, context: dg.ResolutionContext, model: Any) -> Any:
        """The fields out of YAML; a text in their place is refused by what is right there."""
        if isinstance(model, str):
            raise ValueError(f"{model!r} is a text. Write the fields: {{{', '.join(cls.model_fields)}}}.")
        return super().resolve_from_model(context, model)


def _explain(fields: type[BaseModel], extra: dict[str, Any], schema: dict[str, Any]) -> None:
    schema.update(extra)
    for name, field in schema["properties"].items():
        field["description"] = field.get("description") or fields.model_fields[name].description
        choices = field.get("anyOf", [])
        proper = [choice for choice in choices if choice not in (_TEXT, _NOTHING)]
        if not proper or _TEXT not in choices:
            continue
        # Validators go into an `else`, and not into alternatives.
        field["if"] = {"anyOf": [_TEMPLATE, _NOTHING]} if _NOTHING in choices else _TEMPLATE
        field["else"] = proper[0] if len(proper) == 1 else {"anyOf": proper}
        del field["anyOf"]


def _bounded(yaml_type: Any) -> dg.Resolver:
    """Checks a bound where Dagster knows the line of the file; a bound on the field itself fails on any template."""
    return dg.Resolver(lambda context, value: context.resolve_value(value), model_field_type=yaml_type)


_FROM_0_TO_1 = confloat(ge=0, le=1)
Count = Annotated[int, _bounded(conint(ge=1))]
"""A whole number from 1 on."""
CountFromZero = Annotated[int, _bounded(conint(ge=0))]
"""A whole number from 0 on."""
Positive = Annotated[float, _bounded(confloat(gt=0))]
"""A number above 0."""
NotNegative = Annotated[float, _bounded(confloat(ge=0))]
"""A number from 0 on."""
Share = Annotated[float, _bounded(_FROM_0_TO_1)]
"""A number from 0 to 1."""
Shares = Annotated[float | dict[str, float], _bounded(_FROM_0_TO_1 | dict[str, _FROM_0_TO_1])]
"""A share, or one by name."""


class Duration(dg.Model):
    """A duration, such as ``{hours: 6}`` or ``{minutes: 1, seconds: 30}``."""

    days: float = Field(default=0, ge=0, description="Days.")
    hours: float = Field(default=0, ge=0, description="Hours.")
    minutes: float = Field(default=0, ge=0, description="Minutes.")
    seconds: float = Field(default=0, ge=0, description="Seconds.")
    milliseconds: float = Field(default=0, ge=0, description="Milliseconds.")


def _duration(context: dg.ResolutionContext, value: Duration | str) -> timedelta:
    if isinstance(value, str):
        raise ValueError(f"{value!r} is not a duration. Write one as {{hours: 6}}: days, hours, … or milliseconds.")
    return timedelta(**value.model_dump())


ResolvedDuration = Annotated[timedelta, dg.Resolver(_duration, model_field_type=Duration)]
"""``{hours: 6}``, or a template that gives a ``timedelta``."""


class EnvironmentVariable(dg.Model):
    """The value of an environment variable at the time of use: ``{env: FEATURE_SERVER}``."""

    env: str = Field(description="Name of the variable.")


def _text(context: dg.ResolutionContext, value: EnvironmentVariable | str) -> Any:
    return context.resolve_value(value) if isinstance(value, str) else dg.EnvVar(value.env)


# Any, because pydantic would make a plain string of an EnvVar.
ResolvedText = Annotated[Any, dg.Resolver(_text, model_field_type=constr(min_length=1) | EnvironmentVariable)]
"""A text, or ``{env: NAME}``, which becomes a ``dg.EnvVar``: read when it is used, and never shown."""


class Partitions(dg.Model):
    """Time partitions: ``{every: month, start: "2013-01-01"}``."""

    every: Literal["hour", "day", "week", "month"] = Field(description="Length of a partition.")
    start: str = Field(description="First partition, such as 2013-01-01 (hourly: 2013-01-01-00:00).")
    end: str | None = Field(default=None, description="End, itself excluded; open by default.")
    timezone: str = Field(default="UTC", description="Time zone that partitions begin in, such as America/New_York.")


_PARTITIONS: dict[str, Callable[..., dg.TimeWindowPartitionsDefinition]] = {
    "hour": dg.HourlyPartitionsDefinition,
    "day": dg.DailyPartitionsDefinition,
    "week": dg.WeeklyPartitionsDefinition,
    "month": dg.MonthlyPartitionsDefinition,
}


def _partitions(context: dg.ResolutionContext, value: Partitions | str) -> dg.PartitionsDefinition:
    if isinstance(value, str):
        raise ValueError(f'{value!r} does not name partitions. Write them as {{every: month, start: "2013-01-01"}}.')
    start, end, zone = context.resolve_value([value.start, value.end, value.timezone])
    return _PARTITIONS[value.every](start_date=start, end_date=end, timezone=zone)


# Any, because pydantic cannot validate Dagster's definitions.
ResolvedPartitions = Annotated[Any, dg.Resolver(_partitions, model_field_type=Partitions)]
"""``{every: month, start: "2013-01-01"}``, or a template: ``{{ dg.DailyPartitionsDefinition("2013-01-01") }}``."""


_EXAMPLE = "{{ automation_condition.eager() }}"


def _refuse_text(context: dg.ResolutionContext, value: str) -> Any:
    raise ValueError(f"{value!r} is a text. Write a template that gives the object itself, such as {_EXAMPLE!r}.")


FromTemplate = Annotated[Any, dg.Resolver(_refuse_text, model_field_type=str)]
"""An object that only a template can give, such as ``{{ automation_condition.eager() }}``, or a template variable."""


def folder(context: dg.ComponentLoadContext, path: str) -> str:
    """A folder that a component names; a relative one counts from the folder of its YAML file."""
    location = Path(path).expanduser()
    if location.is_absolute():  # also for a component made in Python, which may have no file
        return str(location)
    parent = context.path if context.path.is_dir() else context.path.parent
    return os.path.normpath(parent / location)
