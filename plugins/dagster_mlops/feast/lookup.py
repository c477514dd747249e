"""Features for a server that gets the keys of entities: read from Feast's online store at each request."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dagster_mlops.errors import FeatureError
from dagster_mlops.feast.lazy import pd
from dagster_mlops.feast.offline.retrieval import is_on_demand, is_stored, join_keys
from dagster_mlops.feast.online.reading import EVENT_TIME, OnlineRequest, served_answer
from dagster_mlops.feast.resource import FeastResource

# Feast's types of keys and request data as MLflow names them.
_KINDS = {
    "Int64": "long",
    "Int32": "integer",
    "Float64": "double",
    "Float32": "float",
    "Bool": "boolean",
    "String": "string",
}


class OnlineLookup:
    """The features of a feature service, for entities that a request to a served model names.

        lookup = OnlineLookup(repo="feature_repo", feature_service="delay", max_age=3600)

    It is the `lookup` of the asset that packs the model. The server opens the feature store itself: it needs `repo` at
    this path, the extra ``feast``, and the variables that ``feature_store.yaml`` names, by ``server_environment=`` of
    the resource that packs.

    Args:
        repo: Folder with ``feature_store.yaml``.
        feature_service: Name of the feature service.
        missing: With ``refuse``, an entity of which a view has no features, or expired ones, is refused; with ``null``,
            these features are null. A null that the store holds is null in both cases.
        max_age: Seconds after which the features of a view count as expired, beside the view's own ttl.
    """

    def __init__(
        self,
        *,
        repo: str | Path,
        feature_service: str,
        missing: Literal["refuse", "null"] = "refuse",
        max_age: float | None = None,
    ) -> None:
        self._options = {
            "repo": str(Path(repo).expanduser().resolve()),
            "feature_service": feature_service,
            "missing": missing,
            "max_age": max_age,
        }
        if missing not in ("refuse", "null"):
            raise FeatureError(f"OnlineLookup: missing={missing!r} is not 'refuse' or 'null'.")
        if max_age is not None and (missing == "null" or not max_age > 0):
            raise FeatureError(
                f"OnlineLookup: max_age={max_age!r} is not above 0, or has no effect with missing='null'."
            )
        self._service, self._missing, self._max_age = feature_service, missing, max_age
        self._feast = FeastResource(repo=self._options["repo"])

    def spec(self) -> dict[str, Any]:
        """See :class:`dagster_mlops.serving.runtime.Lookup`."""
        packages = [f"dagster-mlops[feast]=={version('dagster-mlops')}"]
        return {"provider": f"{__name__}:{type(self).__name__}", "options": self._options, "packages": packages}

    def keys(self) -> dict[str, str]:
        """The join keys and request data of the service, with their types."""
        types: dict[str, str] = {}
        with self._feast.online_reader().request(self._service) as request:
            for stored in _stored_views(request):
                names = {column.name: str(column.dtype) for column in stored.view.entity_columns}
                types |= {stored.key_names.get(name, name): dtype for name, dtype in names.items()}
            for used in (used for used in request.views if is_on_demand(used.view)):
                sources = used.view.source_request_sources.values()
                types |= {column.name: str(column.dtype) for source in sources for column in source.schema}
            return {name: _KINDS.get(types.get(name, ""), "any") for name in request.keys}

    def features(self, entities: Sequence[Mapping[str, Any]]) -> list[dict[str, Any] | str]:
        """The features of each entity as the online store has them; see the protocol."""
        at = datetime.now(UTC)
        with self._feast.online_reader().request(self._service) as request:
            rows = {key: [entity[key] for entity in entities] for key in request.keys}
            answer = request.answer(rows, len(entities), at)
            refuses = self._missing == "refuse"
            absent = self._absent(request, answer, rows, len(entities), at) if refuses else {}
            return [
                f"no current features in {', '.join(absent[n])}"
                if n in absent
                else {name: answer[name][n] for name in request.types}
                for n in range(len(entities))
            ]

    def reference(self, entities: "pd.DataFrame") -> "pd.DataFrame":
        """The entities that have current features, with them by Feast's own ``get_online_features``."""
        store, at = self._feast.store(), datetime.now(UTC)
        with self._feast.online_reader().request(self._service) as request:
            rows = {key: entities[key].tolist() for key in request.keys}
            absent = self._absent(request, request.answer(rows, len(entities), at), rows, len(entities), at)
            names = list(request.types)
        present = entities.iloc[[n for n in range(len(entities)) if n not in absent]].reset_index(drop=True)
        if present.empty:
            return present
        rows = {key: present[key].tolist() for key in rows}
        response = store.get_online_features(store.get_feature_service(self._service), rows).to_dict()
        return present.assign(**{name: response[name] for name in names})

    def _absent(
        self, request: OnlineRequest, answer: Mapping[str, Any], rows: Mapping[str, Any], count: int, at: datetime
    ) -> dict[int, list[str]]:
        """By the number of an entity, the views that have no features of it, or expired ones."""
        absent: dict[int, list[str]] = {}
        for stored in _stored_views(request):
            ages = [age.total_seconds() for age in [getattr(stored.view, "ttl", None)] if age]
            ages += [self._max_age] if self._max_age else []
            oldest = at.timestamp() - min(ages) if ages else 1  # a view without features has the time 0
            for number, seconds in enumerate(stored.event_seconds(request, answer, rows, count)):
                if seconds < oldest:
                    absent.setdefault(number, []).append(stored.view.name)
        return absent


class _StoredView(NamedTuple):
    """A view that a request reads from the online store, also as the input of an on-demand view."""

    view: Any
    key_names: Mapping[str, str]  # of join keys in the request, where they have others there
    column: str = ""  # one of its columns in the answer
    ref: str = ""  # one of its features, where the answer has none

    def event_seconds(
        self, request: OnlineRequest, answer: Mapping[str, Any], rows: Mapping[str, Any], count: int
    ) -> list[int]:
        """The event timestamps of the features, in seconds since 1970; 0 where there are none."""
        if self.column:
            return answer[f"{self.column}{EVENT_TIME}"]
        keys = {key: rows[self.key_names.get(key, key)] for key in join_keys(self.view)}
        served = served_answer(request.store, [self.ref], keys, count)
        return served[f"{self.ref.partition(':')[2]}{EVENT_TIME}"]


def _stored_views(request: OnlineRequest) -> Iterator[_StoredView]:
    projections: Any = getattr(request.features, "feature_view_projections", ())
    for used, projection in zip(request.views, projections, strict=True):
        if not is_on_demand(used.view) or is_stored(used.view):
            yield _StoredView(used.view, projection.join_key_map, column=next(iter(used.columns.values())))
            continue
        for source, view in used.sources:
            yield _StoredView(view, source.join_key_map, ref=f"{source.name}:{source.features[0].name}")
