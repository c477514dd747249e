"""Features that a server reads itself: a request names entities, and a feature store has their features."""

import importlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from .outputs import plain
from .schema import Features

if TYPE_CHECKING:
    import pandas as pd


@runtime_checkable
class Lookup(Protocol):
    """A source of the features of entities, such as :class:`dagster_mlops.feast.OnlineLookup`.

    A server makes it by the provider and the options of :meth:`spec`, which a bento carries.
    """

    def spec(self) -> dict[str, Any]:
        """Plain JSON: ``provider`` (``module:name`` of what makes it), its ``options``, ``packages`` to install."""
        ...

    def keys(self) -> Mapping[str, str]:
        """The names that an entity has, with their types as MLflow names them (``long``, ``string``, …)."""
        ...

    def features(self, entities: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | str]:
        """The features of each entity, as they are now; for an entity of which some are missing or too old, a text that
        says which. (A bento has a copy of this module, so that it would not know an exception of the provider.)
        """
        ...

    def reference(self, entities: "pd.DataFrame") -> "pd.DataFrame":
        """Those entities that have features, with them, read in another way: what a rollout compares with."""
        ...


class EntityError(ValueError):
    """The features of an entity are missing, or do not fit the model; the text names no values."""


class Lookups:
    """Looks up entities for a model, one request after the other: a client of a feature store need not be safe in
    threads.
    """

    def __init__(self, lookup: Lookup, features: Features) -> None:
        self._lookup, self._features = lookup, features
        self._booleans = {name for name, kind in features.kinds.items() if kind == "boolean"}
        self._pool = ThreadPoolExecutor(1, "lookup")

    def submit(self, entities: list[dict[str, Any]]) -> "Future[tuple[list[tuple[Any, ...]], list[dict[str, Any]]]]":
        """Values of the features of each entity, as the model takes them, and what is logged: these with the keys.

        The future raises EntityError where an entity has no features, or they do not fit the model, and whatever the
        client of the feature store does.
        """
        return self._pool.submit(self._look_up, entities)

    def _look_up(self, entities: list[dict[str, Any]]) -> tuple[list[tuple[Any, ...]], list[dict[str, Any]]]:
        rows: list[dict[str, Any]] = []
        for number, (entity, features) in enumerate(zip(entities, self._lookup.features(entities), strict=True)):
            if isinstance(features, str):
                raise EntityError(f"entity {number} has {features}")
            rows.append({name: self._value(name, value) for name, value in {**entity, **features}.items()})
        try:
            values = self._features.checked(rows)
        except ValueError as error:
            raise EntityError(f"the features do not fit the model: {error}") from None
        names = {*self._features.names}
        logged = [
            {**entity, **{name: value for name, value in row.items() if name in names}}
            for entity, row in zip(entities, rows, strict=True)
        ]
        return values, logged

    def _value(self, name: str, value: Any) -> Any:
        # Feast's dataframes, on which a model was trained, have 1.0 for true.
        return float(value) if isinstance(value, bool) and name not in self._booleans else plain(value)


def load_lookup(spec: Mapping[str, Any]) -> Lookup:
    """The lookup of a bento.

    Raises:
        ImportError: its provider is not installed.
        TypeError: the provider is not a class of lookups, but, say, one that starts programs.
    """
    module, _, name = str(spec["provider"]).partition(":")
    kind = getattr(importlib.import_module(module), name)
    if not (isinstance(kind, type) and issubclass(kind, Lookup)):
        raise TypeError(f"{spec['provider']} is not a class of lookups.")
    return kind(**spec["options"])
