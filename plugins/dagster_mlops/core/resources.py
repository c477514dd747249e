"""The base of resources, and resources by what they can do.

A verb takes any tool's resource that has the methods of a capability.
"""

from typing import Any, TypeVar

import dagster as dg

from dagster_mlops.errors import ToolError
from dagster_mlops.provenance.credentials import remember_credentials

_C = TypeVar("_C")


class ToolResource(dg.ConfigurableResource):
    """Base of the tools' resources: the credentials in its fields are masked in every text from then on.

    Dagster makes the resource a second time for each step, with the values of environment variables.
    """

    def model_post_init(self, context: Any, /) -> None:
        """Called by pydantic when the fields have their values."""
        super().model_post_init(context)
        remember_credentials(vars(self))


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
