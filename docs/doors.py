"""Shows Griffe what a package exports on demand: the names that it imports under `if TYPE_CHECKING`."""

from typing import Any

import griffe


class Doors(griffe.Extension):
    """Exports of packages without ``__all__``."""

    def on_module_members(self, *, mod: griffe.Module, **kwargs: Any) -> None:
        """Export the imports that only type checkers read."""
        if mod.is_init_module and mod.exports is None and "lazy_door" in mod.members:
            mod.exports = [name for name, member in mod.members.items() if member.is_alias and not member.runtime]
