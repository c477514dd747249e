"""Dataclasses that are compiled when they are first used."""

import dataclasses
import inspect
import threading
from collections.abc import Callable
from typing import Any, TypeVar, dataclass_transform

_Class = TypeVar("_Class", bound=type)
_LOCK = threading.RLock()


@dataclass_transform(field_specifiers=(dataclasses.field,))
def lazy_dataclass(**options: Any) -> Callable[[_Class], _Class]:
    """:func:`dataclasses.dataclass`, applied when the first instance is made or someone asks for the fields.

    Python compiles up to ten methods for a dataclass, which takes half a millisecond. Without this, each load of a code
    location would wait for the dataclasses that only its steps use.

    >>> @lazy_dataclass(frozen=True)
    ... class Point:
    ...     x: int
    ...     y: int = 0
    >>> Point(1), dataclasses.replace(Point(1), y=2)
    (Point(x=1, y=0), Point(x=1, y=2))
    """

    def decorate(cls: _Class) -> _Class:
        started = done = False

        def complete() -> None:
            nonlocal started, done
            with _LOCK:
                if not started:
                    started = True
                    dataclasses.dataclass(**options)(cls)
                    done = True

        def new(subclass: Any, *_: Any, **__: Any) -> Any:
            if not done:
                complete()
            return object.__new__(subclass)

        def fields(subclass: Any) -> Any:
            complete()
            return subclass.__dataclass_fields__  # which the dataclass has set in place of this

        def signature(subclass: Any) -> inspect.Signature:
            complete()
            own = inspect.signature(subclass.__init__)
            return own.replace(parameters=[*own.parameters.values()][1:])

        # Not `__init__`: copies and unpickled instances are made without it. Python cannot restore `__new__` later.
        setattr(cls, "__new__", new)  # noqa: B010 - type checkers forbid the assignment
        setattr(cls, "__dataclass_fields__", _ClassProperty(fields))  # noqa: B010
        setattr(cls, "__signature__", _ClassProperty(signature))  # noqa: B010
        return cls

    return decorate


class _ClassProperty:
    def __init__(self, of_class: Callable[[type], Any]) -> None:
        self.of_class = of_class

    def __get__(self, instance: object, owner: type) -> Any:
        if instance is not None:
            raise AttributeError("Only the class has this attribute.")
        return self.of_class(owner)
