"""Verification and restoration of a history in the places where it is kept."""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_mlops.core.asset_keys import asset_key
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.model_digest import changed, model_digest
from dagster_mlops.core.model_versions import holder
from dagster_mlops.errors import HistoryError, ModelVersionError
from dagster_mlops.promotion.history.event_log import identity, part_metadata
from dagster_mlops.promotion.history.log import readable
from dagster_mlops.promotion.history.restoration import Whole, whole, write
from dagster_mlops.promotion.history.verification import Finding, Held, Store, Verification, verify
from dagster_mlops.promotion.sources import EVENT_LOG, Sources
from dagster_mlops.provenance import ModelVersion, mask_credentials
from dagster_mlops.tools import HoldsModels, KeepsHistory, RenewsHistory, turn_of

if TYPE_CHECKING:
    from dagster_mlops.promotion.history.verification import Keys


def audit(sources: Sources, keys: "Keys", *, files: bool = False) -> Verification:
    """Verify a history in all places where it is, with `files` also the files of the versions that hold aliases.

    Raises:
        DagsterMlopsError: the registry cannot be asked, or no place has an entry.
    """
    model, findings = sources.model, list[Finding]()
    with sources.models() as models:
        stores: list[Store] = []
        try:
            stores = [_of_registry(sources, models)] if isinstance(models, KeepsHistory) else []
        except HistoryError as error:
            findings.append(Finding(None, sources.registry, str(error)))
        if sources.promoters:
            log = sources.event_log(_identity(*stores))
            stores += [log] if log.texts or log.heads else []
            findings += [] if log.texts or log.heads else [Finding(None, EVENT_LOG, _of_others(sources))]
        if not any(store.texts or store.heads for store in stores):
            models.version(model)  # an unknown model has an error of its own
            raise HistoryError(str(findings[0]) if findings else f"{sources.registry} has no history of {model!r}.")
        aliases = {entry.alias for entry in verify(model, stores, {}, keys).entries}
        holders: dict[str, Held] = {}
        for version, name in ((holder(models, model, alias), alias) for alias in sorted(aliases)):
            holders[name] = Held(version.version, version.sha256) if version else Held("", "")
            if version and files and (problem := _of_files(models, version)):
                findings.append(Finding(None, f"version {version.version}", problem))
    verification = verify(model, stores, holders, keys)
    return dataclasses.replace(verification, findings=(*verification.findings, *findings))


def _of_others(sources: Sources) -> str:
    places = "; ".join(map(str, sources.promoters))
    return (
        f"it has no entry of this history, but those of {sources.model!r} in {places}. If that is the same registry at "
        "another address, its history was replaced. If it is another one, no promotion of this Dagster instance was "
        "here: verify this one without it."
    )


def _identity(*stores: Store) -> str:
    """The identity of the history that a registry has; empty without its first entry."""
    return identity(next((text for store in stores for text in store.texts.get(0, ())), ""))


def _of_registry(sources: Sources, models: Any) -> Store:
    head = models.head(sources.model)
    texts = models.history(sources.model)
    return Store(sources.registry, {number: [text] for number, text in texts.items()}, [head] if head else [])


def _of_files(models: HoldsModels, version: ModelVersion) -> str:
    """The reason why the files of a version are not those of its record; empty if they are."""
    with tempfile.TemporaryDirectory(prefix="dagster-mlops-") as scratch:
        try:
            return changed(model_digest(models.fetch(version, Path(scratch)).folder), version.sha256)
        except ModelVersionError as error:
            return str(error)


@lazy_dataclass(frozen=True)
class Restored:
    """The numbers of the entries that were written, by place."""

    model: str
    entries: Mapping[str, tuple[int, ...]]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"model": self.model, "written": {place: list(numbers) for place, numbers in self.entries.items()}}


def restore(sources: Sources, keys: "Keys") -> Restored:
    """Give the registry and Dagster's event log the entries that only the other one has; none is replaced.

    Raises:
        DagsterMlopsError: the registry cannot be asked or keeps no history, the two differ, or what is there is not
            sound.
    """
    model, entries = sources.model, {}
    with sources.models() as models:
        if not isinstance(models, KeepsHistory):
            raise HistoryError(f"{sources.registry} keeps no history: it is in Dagster's event log only.")
        models.version(model)
        with turn_of(models, model):
            try:
                registry = _of_registry(sources, models)
            except HistoryError:
                if not (isinstance(models, RenewsHistory) and sources.event_log("").texts):
                    raise
                models.renew_history(model)
                registry = _of_registry(sources, models)
            log = sources.event_log(_identity(registry))
            history = whole(model, registry, log, keys)
            if not history.texts:
                raise HistoryError(f"{registry.name} and {EVENT_LOG} have no history of {model!r}.")
            existing = {number: texts[0] for number, texts in registry.texts.items()}
            entries[registry.name] = tuple(write(models, history, existing))
            if sources.instance:
                entries[EVENT_LOG] = _observe(sources, sources.instance, history, log)
    return Restored(model, entries)


def _observe(sources: Sources, instance: dg.DagsterInstance, history: Whole, log: Store) -> tuple[int, ...]:
    """Bring the event log what it lacks, by observations of the asset that promotes the model."""
    entries = readable(history.model, dict(enumerate(history.texts))).values()
    asset = next((str(entry.facts.get("dagster_asset", "")) for entry in reversed(entries)), "")
    of = identity(history.texts[0])
    promoters = sources.here(of)
    if not promoters and not asset:
        return ()
    key = promoters[0].key if promoters else asset_key(asset)
    parts = [{**part, "history": of, "at": mask_credentials(sources.place)} for part in history.parts(log.texts)]
    for part in parts:
        instance.report_runless_asset_event(dg.AssetObservation(key, metadata=part_metadata(sources.tool, part)))
    return tuple(number for part in parts for number in range(part["first"], part["first"] + len(part["entries"])))
