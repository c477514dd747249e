"""The base of resources, and resources by what they can do.

A verb takes any tool's resource that has the methods of a capability.
"""

import os
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
from pydantic import Field

from dagster_mlops.errors import ToolError
from dagster_mlops.provenance import ModelVersion
from dagster_mlops.provenance.credentials import masked_strings, remember_credentials
from dagster_mlops.tools import StoredModel

_C = TypeVar("_C")
_variables: defaultdict[tuple[type, str], set[str]] = defaultdict(set)  # by field, those that it was given


class ToolResource(dg.ConfigurableResource):
    """Base of the tools' resources: the credentials in its fields are masked in every text from then on.

    A credential that is written into a field, in place of a ``dg.EnvVar``, is warned of. Dagster makes the resource a
    second time for each step, with the values of environment variables.
    """

    def __init__(self, **data: Any) -> None:
        super().__init__(**data)
        for field, value in data.items():
            variables = _variables[type(self), field]
            if isinstance(value, dg.EnvVar):
                variables.add(value.env_var_name)
            is_resolved = value in [os.environ[variable] for variable in variables if variable in os.environ]
            note_credentials(type(self).__name__, field, value, is_resolved=is_resolved)


def note_credentials(owner: str, field: str, value: Any, *, is_resolved: bool = False) -> None:
    """Mask the credentials in a field of a resource, or an argument of a factory, and warn of those written into it.

    Args:
        owner: Name of the resource's class, or of the factory.
        field: Name of the field or argument.
        value: Its value, which may have others in it.
        is_resolved: True for the value of an environment variable.
    """
    for place, name, text in _texts(value, field, field):
        if not is_resolved and masked_strings({name: text}) != {name: text}:
            _warn_of_literal(owner, field, place)
        remember_credentials({name: text})


def _texts(value: Any, name: str, place: str) -> Iterator[tuple[str, str, str]]:
    """The texts in the value of a field that are not names of variables: place, name and text."""
    if isinstance(value, Mapping) and set(value) != {"env"}:  # Dagster's form of an EnvVar in a mapping
        for key, below in value.items():
            yield from _texts(below, str(key), f"{place}[{key!r}]")
    elif isinstance(value, list | tuple):
        for below in value:
            yield from _texts(below, name, place)
    elif isinstance(value, str) and not isinstance(value, dg.EnvVar):
        yield place, name, value


def _warn_of_literal(owner: str, field: str, place: str) -> None:
    variable = f"{owner.removesuffix('Resource')}_{field}".upper()
    remedy = f'dg.EnvVar("{variable}")' if place == field else 'dg.EnvVar("NAME"), in YAML {env: NAME},'
    warnings.warn(
        f"{place} of {owner} holds a credential as text: it is in your code, and Dagster stores and shows it. "
        f"Put the whole text into an environment variable and give {remedy} in its place.",
        stacklevel=4,
    )


class LoadsModels(ToolResource):
    """A resource whose models are loaded: what loading them may involve beside reading data is said here, once."""

    allow_pickle: bool = Field(
        default=False,
        description="Load models of any format: pickles and models with code of their own run what their writer put "
        "into them. Default: data only.",
    )
    trust: list[str] = Field(
        default=[], description="Your packages or types that a skops file may name, as for log_model(trust=…)."
    )

    def stored(self, folder: Path, version: ModelVersion, sha256: str = "") -> StoredModel:
        """The model in an MLmodel folder, to be loaded on the terms of this resource.

        Raises:
            OSError: there is no MLmodel file.
        """
        return StoredModel.read(folder, version, sha256=sha256, allow_pickle=self.allow_pickle, trust=self.trust)


def capable_resource(context: Any, key: str, capability: type[_C]) -> _C:
    """The resource `key` of a step, which must have the methods of `capability`, a runtime-checkable protocol.

    Raises:
        ToolError: The resource lacks one of them.
    """
    resource = getattr(context.resources, key)
    if isinstance(resource, capability):
        return resource
    methods = ", ".join(f"{name}()" for name in vars(capability) if not name.startswith("_"))
    raise ToolError(
        f"The resource {key!r} is a {type(resource).__name__}, which lacks {methods} of {capability.__name__}. Bind a "
        f"tool's resource that has them to {key!r}, or name the key of another resource."
    )
