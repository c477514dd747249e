"""Training data that is not stale."""

import time
from collections.abc import Sequence
from datetime import timedelta

import dagster as dg

from dagster_mlops.core.asset_keys import AssetLike, asset_key
from dagster_mlops.core.asset_records import latest_event, misspelt
from dagster_mlops.core.bounds import refuse_useless
from dagster_mlops.core.lazy_dataclass import lazy_dataclass
from dagster_mlops.promotion.case import Case
from dagster_mlops.promotion.rules.options import option, refuse_age
from dagster_mlops.promotion.verdict import Row
from dagster_mlops.provenance import Dataset, records_in

_MOST = 200  # materializations among which that of the training is searched


@lazy_dataclass(frozen=True, kw_only=True)
class FreshData:
    """The version of each asset that the candidate was trained on was made, or seen unchanged, not too long ago.

    It is the one whose content hash the record of the candidate names. Of an asset without such a hash it is the latest
    at the time when the candidate was made.
    """

    assets: Sequence[AssetLike] = option("Keys of the assets that it was trained on.")
    max_age: timedelta = option("How long ago they may have been made, at most.")

    def __post_init__(self) -> None:
        wrong = isinstance(self.assets, str) or not self.assets
        refuse_useless("FreshData", {f"assets={self.assets!r} is not a list such as ['training_set']": wrong})
        refuse_age("FreshData", "max_age", self.max_age)

    @property
    def name(self) -> str:
        return f"fresh data: {', '.join(asset_key(asset).to_user_string() for asset in self.assets)}"

    def judge(self, case: Case) -> Sequence[Row]:
        """A row for each asset."""
        return [self._row(case, asset_key(asset)) for asset in self.assets]

    def _row(self, case: Case, key: dg.AssetKey) -> Row:
        asset, rule = key.to_user_string(), f"{key.to_user_string()} is fresh"
        event, problem = _version_read(case, key)
        if event is None:
            advice = misspelt(case.context, key) or problem
            return Row.of(rule, False, advice, limit=self.max_age)
        age = timedelta(seconds=round(max(0.0, time.time() - event.timestamp)))
        if age <= self.max_age:
            return Row.of(rule, True, f"it was made {age} ago", candidate=age, limit=self.max_age)
        why = f"it was made {age} ago, and at most {self.max_age} is allowed. Materialize {asset}, then train again."
        return Row.of(rule, False, why, candidate=age, limit=self.max_age)


def _version_read(case: Case, key: dg.AssetKey) -> tuple[dg.EventLogRecord | None, str]:
    """The event of the version of an asset that the candidate was trained on, or the reason why there is none."""
    instance, hashes, asset = case.context.instance, case.candidate.datasets, key.to_user_string()
    selection = dg.AssetRecordsFilter(asset_key=key)
    # A dataset that someone else stores is observed, never materialized.
    events = instance.fetch_materializations(selection, limit=_MOST).records
    events = events or instance.fetch_observations(selection, limit=_MOST).records
    datasets = [(event, record) for event in events for record in _datasets(event)]
    for event, record in datasets:
        if record.md5 in hashes.values():
            return event, ""
    if paths := {record.path for _, record in datasets} & set(hashes):
        version = f"{(path := paths.pop())}@{hashes[path][:12]}"
        return None, f"{version}, which it was trained on, is not on record for {asset}. Train it again."
    trained = latest_event(instance, case.asset)
    earlier = [event for event in events if trained is None or event.timestamp <= trained.timestamp]
    if not earlier:
        return None, f"{asset} was not materialized before the candidate. Materialize it, then train again."
    return earlier[0], ""


def _datasets(event: dg.EventLogRecord) -> list[Dataset]:
    entry = event.event_log_entry
    content = entry.asset_materialization or entry.asset_observation
    return [record for record in records_in(content.metadata if content else {}) if isinstance(record, Dataset)]
