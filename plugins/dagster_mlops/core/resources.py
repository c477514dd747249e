"""Resources by what they can do: a verb takes any tool's resource that has the methods of a capability."""

from typing import Any, TypeVar

from dagster_mlops.errors import ToolError

_C = TypeVar("_C")


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
