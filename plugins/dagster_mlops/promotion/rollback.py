"""Rollback of an alias to an earlier version, in one step, which holds until a person lifts it."""

from collections.abc import Callable, Sequence

import dagster as dg

from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.core.metadata import DATA_VERSION, link
from dagster_mlops.core.model_versions import holder
from dagster_mlops.core.terminal import error_line
from dagster_mlops.errors import HistoryError, ModelVersionError
from dagster_mlops.promotion.author import Author
from dagster_mlops.promotion.history.entry import LIFT, ROLLBACK, Entry, made
from dagster_mlops.promotion.history.event_log import Mirror, identity, part_metadata
from dagster_mlops.promotion.history.log import History, has_files
from dagster_mlops.promotion.history.rollbacks import earlier_holder, files_of, rollbacks
from dagster_mlops.promotion.pointers import follow, recorded_names
from dagster_mlops.promotion.sources import Promoter, Sources
from dagster_mlops.provenance import mask_credentials
from dagster_mlops.tools import HoldsModels, KeepsHistory, turn_of

_TRIES = 5


@lazy_dataclass(frozen=True)
class Rollback:
    """The entry of a rollback, or of one that was lifted, in which registry, and the asset of Dagster that was updated.

    `asset` is empty for none; `problem` says why Dagster does not know.
    """

    entry: Entry
    registry: str
    asset: str = ""
    problem: str = ""

    def to_dict(self) -> dict[str, str]:
        """Plain data for JSON."""
        names = ("model", "alias", "kind", "before", "after", "at", "by", "why")
        entry = {name: getattr(self.entry, name) for name in names}
        return {**entry, "registry": self.registry, "asset": self.asset, "problem": self.problem}


def roll_back(sources: Sources, alias: str, *, to: str = "", reason: str, author: Author) -> Rollback:
    """Move an alias to version `to`, which has held it, or to the last one that was not rolled back from or deleted.

    Raises:
        DagsterMlopsError: the registry cannot be asked or keeps no history; or the model, alias or version is not
            in it.
    """

    def step(models: HoldsModels, history: History, seen: str) -> Entry | None:
        before = history.settle(alias)
        if before != seen:  # of two people at once, the second would go back one version more
            raise HistoryError(
                f"version {before or 'none'} of {sources.model!r} holds {alias!r}, no longer {seen or 'none'}: someone "
                f"else was quicker. See `dagster-mlops history {sources.model}`."
            )
        if not before:
            raise ModelVersionError(
                f"no version of {sources.model!r} holds {alias!r}. Name the alias by --alias: `dagster-mlops history "
                f"{sources.model}` shows those that were moved."
            )
        after = _former(models, history, alias, to) if to else earlier_holder(history, alias, before)
        if not after:
            raise HistoryError(
                f"no version held {alias!r} of {sources.model!r} before version {before} that is still there and was "
                "not rolled back from. Name a version: --to VERSION."
            )
        if after == before:
            raise HistoryError(f"version {after} of {sources.model!r} holds {alias!r} already.")
        facts = author.facts()
        if not history.move(ROLLBACK, alias, before, after, by=author.by, why=reason, facts=facts):
            return None
        return history.last(alias)

    return _step(sources, alias, step)


def _former(models: HoldsModels, history: History, alias: str, which: str) -> str:
    """A version that has held the alias before: a rollback moves it to no other, which no gate may have judged."""
    version, files = models.version(history.model, which), files_of(made(history.entries(alias)))
    if version.version not in files or not has_files(version, files[version.version]):
        versions = ", ".join(each for each in files if each) or "none is on record"
        raise HistoryError(
            f"version {version.version} of {history.model!r} has never held {alias!r}, and a rollback returns to a "
            f"version that has: {versions}. Promote it, or move the alias by hand in the registry."
        )
    return version.version


def lift(sources: Sources, alias: str, version: str, *, reason: str, author: Author) -> Rollback:
    """Let a version that was rolled back from be promoted again.

    Raises:
        DagsterMlopsError: the registry cannot be asked or keeps no history; or the version was not rolled back from.
    """

    def step(models: HoldsModels, history: History, seen: str) -> Entry | None:
        current, in_force = history.settle(alias), rollbacks(history.entries(alias))
        if version not in in_force:
            raise HistoryError(
                f"version {version} of {sources.model!r} was not rolled back from {alias!r}, or that was lifted. "
                f"In force: {', '.join(in_force) or 'no rollback'}."
            )
        if not history.append(LIFT, alias, current, version, by=author.by, why=reason, facts=author.facts()):
            return None
        history.confirm()
        return history.entries(alias)[-1]

    return _step(sources, alias, step)


def _step(sources: Sources, alias: str, step: Callable[[HoldsModels, History, str], Entry | None]) -> Rollback:
    model = sources.model
    with sources.models() as models:
        models.version(model)  # an unknown model has an error of its own
        if not isinstance(models, KeepsHistory):
            raise HistoryError(f"{sources.registry} keeps no history, in which a rollback has to be written down.")
        version = holder(models, model, alias)
        seen = version.version if version else ""
        with turn_of(models, model):
            for _ in range(_TRIES):
                history = History(models, models, model)
                if entry := step(models, history, seen):
                    follow(models, history, alias, recorded_names(history, alias))
                    try:
                        return Rollback(entry, sources.registry, _reported(sources, models, history, entry))
                    except Exception as error:  # noqa: BLE001 - of Dagster's database, after the registry has moved
                        return Rollback(entry, sources.registry, problem=error_line(error))
        raise ModelVersionError(
            f"alias {alias!r} of {model!r} kept moving meanwhile. See who moves it, and repeat this."
        )


def _reported(sources: Sources, models: HoldsModels, history: History, entry: Entry) -> str:
    """Tell Dagster at once: the asset that promotes to this alias is another version, and its events have the entry."""
    promoter = _promoter(sources.here(identity(history.texts[0])), history.entries(entry.alias), entry.alias)
    if promoter is None or sources.instance is None:
        return ""
    tool, record = models.tool, models.version(entry.model, f"@{entry.alias}")
    *earlier, last = Mirror(sources.instance, promoter.key, tool, entry.model).missing(
        history, mask_credentials(sources.place)
    )
    for part in earlier:
        observation = dg.AssetObservation(promoter.key, metadata=part_metadata(tool, part))
        sources.instance.report_runless_asset_event(observation)
    version = int(record.version) if record.version.isdigit() else record.version
    metadata = {
        f"{tool}/champion_version": version,
        f"{tool}/{entry.kind}": entry.why,
        **part_metadata(tool, last),
        **link(f"{tool}/version_url", models.url(record)),
    }
    event = dg.AssetMaterialization(
        promoter.key,
        metadata=record.to_metadata(metadata),
        tags={DATA_VERSION: f"{record.name}/{record.version}"},
    )
    sources.instance.report_runless_asset_event(event)
    return promoter.key.to_user_string()


def _promoter(promoters: Sequence[Promoter], entries: Sequence[Entry], alias: str) -> Promoter | None:
    """The asset that has moved this alias, else one whose version holds it."""
    assets = [entry.facts.get("dagster_asset") for entry in reversed(entries)]
    by_name = {promoter.key.to_user_string(): promoter for promoter in promoters}
    moved = (by_name[asset] for asset in assets if asset in by_name)
    holds = (promoter for promoter in promoters if promoter.version and alias in promoter.version.aliases)
    return next(moved, next(holds, None))
