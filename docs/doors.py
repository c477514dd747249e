"""Shows Griffe what a package exports on demand: the names that it imports as themselves."""

from typing import Any

import griffe


class Doors(griffe.Extension):
    """Exports of packages without ``__all__``."""

    def on_module_members(self, *, mod: griffe.Module, **kwargs: Any) -> None:
        """Export the imports from this library."""
        if mod.is_init_module and mod.exports is None and "lazy_door" in mod.members:
            aliases = {name: member.target_path for name, member in mod.members.items() if member.is_alias}
            del aliases["lazy_door"]
            mod.exports = [name for name, target in aliases.items() if target.startswith("dagster_mlops.")]

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Show a `lazy_dataclass` as the dataclass that it is."""
        for decorator in cls.decorators:
            if isinstance(decorator.value, griffe.ExprCall) and decorator.callable_path.endswith("lazy_dataclass"):
                decorator.value.function = griffe.ExprName("dataclasses.dataclass")
                cls.labels.add("dataclass")
