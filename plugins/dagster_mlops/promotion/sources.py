"""Places of a model's history, as commands find them: its registry, and the assets of Dagster that promote it.

A registry is opened only where the caller's environment, the caller, or a run of the caller's Dagster has named it.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.places import checkout_of, is_same
from dagster_mlops.errors import HistoryError, ProvenanceError
from dagster_mlops.promotion.approval import WAITS_FOR
from dagster_mlops.promotion.history.event_log import Mirror, identity_in, parts_in
from dagster_mlops.promotion.history.verification import Store
from dagster_mlops.provenance import ModelVersion, mask_credentials
from dagster_mlops.tools import HoldsModels, OpensModels, installed_tools, tool_for

EVENT_LOG = "Dagster's event log"
"""Name of this store in findings and on screens."""


@lazy_dataclass(frozen=True)
class Promoter:
    """An asset whose events bring the history of a model: its key, its registry, its latest version, and when.

    `waits` is true if its latest run has ended by asking people. `history` is the identity of the history; empty where
    an earlier version of this library wrote the event.
    """

    key: dg.AssetKey
    model: str
    tool: str
    version: ModelVersion | None
    place: str
    history: str
    timestamp: float
    waits: bool = False

    def __str__(self) -> str:
        when = datetime.fromtimestamp(self.timestamp, UTC).strftime("%Y-%m-%d %H:%M UTC")
        return f"{self.tool} at {mask_credentials(self.place)} (asset {self.key.to_user_string()}, {when})"


@lazy_dataclass(frozen=True)
class Sources:
    """The registry of a model, by tool and place, and the assets that promote a model of this name with this tool."""

    model: str
    tool: str
    place: str
    instance: dg.DagsterInstance | None
    promoters: Sequence[Promoter]

    @property
    def registry(self) -> str:
        """Name of the registry in findings and on screens."""
        return f"{self.tool} at {mask_credentials(self.place)}"

    @contextmanager
    def models(self) -> Iterator[HoldsModels]:
        """The registry, connected.

        Raises:
            DagsterMlopsError: it cannot be opened.
        """
        with tool_for(self.tool, OpensModels).models_at(self.place) as models:
            yield models

    def here(self, history: str) -> Sequence[Promoter]:
        """The assets that promote the model in this registry: by its place, else by the identity of its history."""
        by_place = [each for each in self.promoters if is_same(each.place, self.place)]
        return by_place or [each for each in self.promoters if each.history in ("", history)]

    def event_log(self, history: str) -> Store:
        """The entries and heads in Dagster's event log of the history with this identity, and of any at this place.

        The place counts, because whoever replaces a whole history in a registry changes its identity; the identity,
        because the address of a registry may be another one by now. Without both, it is the only history that there is.

        Raises:
            HistoryError: there are several.
        """
        assert self.instance or not self.promoters  # it has named them
        mirrors = [Mirror(self.instance, each.key, each.tool, self.model) for each in self.promoters if self.instance]
        places: dict[str, set[str]] = {}
        for part in (part for mirror in mirrors for part in mirror.parts):
            places.setdefault(identity_in(part), set()).add(part.get("at", ""))
        identities = {each for each, at in places.items() if any(is_same(place, self.place) for place in at if place)}
        identities = (identities | {history}) & {*places, ""}
        if not history and not identities - {""}:
            identities = {*places}
            if len(identities - {""}) > 1:
                raise HistoryError(
                    f"{self.registry} has no history of {self.model!r}, and {EVENT_LOG} has several, of "
                    f"{'; '.join(map(str, self.promoters))}. Name the place of one: --registry PLACE."
                )
        texts: dict[int, list[str]] = {}
        heads: list[str] = []
        for mirror in mirrors if identities else ():
            for number, of_number in mirror.history(identities).items():
                texts.setdefault(number, []).extend(text for text in of_number if text not in texts[number])
            heads += mirror.heads(identities)
        return Store(EVENT_LOG, texts, heads)


def find_sources(model: str, instance: dg.DagsterInstance | None, place: str = "") -> Sources:
    """The places of a history. The registry is at `place`, else where a promotion was last, else in the environment.

    Raises:
        HistoryError: none of the three has a registry, or promotions were in several.
    """
    assets = sorted(promoters(instance, model), key=lambda each: -each.timestamp) if instance else []
    last, *earlier = [each for each in assets if each.place] or [None]
    if not place and last:
        rivals = [each for each in earlier if each and (each.tool != last.tool or not is_same(each.place, last.place))]
        if rivals:
            raise HistoryError(
                f"{model!r} is promoted in several registries: {'; '.join(map(str, [last, *rivals]))}. Name one: "
                "--registry PLACE."
            )
        tool, place = last.tool, last.place
    else:
        place = place or os.environ.get("MLFLOW_TRACKING_URI", "") or checkout_of(Path.cwd())
        tool = _tool_at(place)
    if not tool:
        where = f"{mask_credentials(place)} is none" if place else f"no asset of Dagster promotes {model!r}"
        raise HistoryError(
            f"the registry of {model!r} was not found: {where}. Name it by --registry PLACE (MLflow's tracking URI, or "
            "the folder of a git repository), set MLFLOW_TRACKING_URI, or name your Dagster instance by --dagster-home."
        )
    return Sources(model, tool, place, instance, [each for each in assets if each.tool == tool])


def _tool_at(place: str) -> str:
    tools = installed_tools()
    able = (
        name for name in tools if place and isinstance(tool := tools[name], OpensModels) and tool.has_registry(place)
    )
    return next(able, "")


def promoters(instance: dg.DagsterInstance, model: str = "") -> Iterator[Promoter]:
    """The assets that promote a model, or any."""
    for record in instance.get_asset_records():
        entry, key = record.asset_entry.last_materialization, record.asset_entry.asset_key
        if entry is None:  # a history that was restored into a new event log is only observed
            observed = instance.fetch_observations(key, limit=1).records
            entry = observed[0].event_log_entry if observed else None
        event = (entry.asset_materialization or entry.asset_observation) if entry else None
        for tool, part in parts_in(event.metadata if event else {}):
            if model in ("", part["model"]) and entry and event:
                version = _version(event)
                place = version.ref.at if version else str(part.get("at", ""))
                waits = f"{tool}/{WAITS_FOR}" in event.metadata
                at = (version, place, identity_in(part), entry.timestamp)
                yield Promoter(key, part["model"], tool, *at, waits)


def _version(event: dg.AssetMaterialization | dg.AssetObservation) -> ModelVersion | None:
    try:
        return ModelVersion.from_metadata(event.metadata)
    except ProvenanceError:  # of a later version of this library
        return None
