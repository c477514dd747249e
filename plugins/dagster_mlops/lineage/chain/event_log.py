"""The records in Dagster's event log, which outlive what a tool has deleted."""

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import dagster as dg

from dagster_mlops.errors import ProvenanceError
from dagster_mlops.provenance import Record, Ref, raw_records

_R = TypeVar("_R", bound=Record)
_PAGE = 1_000


@dataclass(frozen=True)
class Entry:
    """A record as one asset event carries it. `first_seen` is the Unix time of the first event of the same thing."""

    record: Record
    asset: str
    partition: str
    timestamp: float
    first_seen: float


class EventLog:
    """The provenance records in a Dagster instance, read lazily and newest first.

    The first lookup reads the newest 1,000 events of each asset. A lookup that finds nothing reads on, page by page,
    until `limit` events were read in all.

        EventLog(dg.DagsterInstance.get()).find(Ref("mlflow", "model_version", "delay/3"))
    """

    def __init__(self, instance: dg.DagsterInstance, *, limit: int = 100_000) -> None:
        self._instance = instance
        self._limit = limit
        self._entries: dict[tuple[str, str, str], list[Entry]] = defaultdict(list)
        self._rounds = self._read()
        self.unreadable: list[str] = []

    def find(self, ref: Ref, *, before: float | None = None) -> Entry | None:
        """The newest record of `ref`, at or before a time when one is given and an event is that old.

        A ref that does not say where (`at`) matches a thing of that id anywhere.
        """
        while not (entries := self._matching(ref)):
            if not next(self._rounds, False):
                return None
        entries = [entry for entry in entries if before is None or entry.timestamp <= before] or entries
        entries.sort(key=lambda entry: -entry.timestamp)
        # The latest record of a thing, such as that of a promoted version, may name only the thing itself.
        edges = (tuple(up for up in entry.record.upstream if up != ref) for entry in entries)
        record = dataclasses.replace(entries[0].record, upstream=next(filter(None, edges), ()))
        return dataclasses.replace(entries[0], record=record, first_seen=entries[-1].timestamp)

    def entries(self, role: type[_R]) -> list[tuple[_R, Entry]]:
        """The records of one class in the first pages, newest first; `Record` itself gives those of unknown roles."""
        if not self._entries:
            next(self._rounds, False)
        pairs = [
            (entry.record, entry)
            for entry in itertools.chain.from_iterable(self._entries.values())
            if isinstance(entry.record, role) and (role is not Record or type(entry.record) is Record)
        ]
        return sorted(pairs, key=lambda pair: -pair[1].timestamp)

    def _matching(self, ref: Ref) -> list[Entry]:
        entries = self._entries.get((ref.tool, ref.role, ref.id), [])
        return [entry for entry in entries if not ref.at or entry.record.ref.at == ref.at] or list(entries)

    def _read(self) -> Iterator[bool]:
        """Read one page of each asset per round."""
        cursors: dict[dg.AssetKey, str | None] = dict.fromkeys(self._instance.get_asset_keys())
        left = self._limit
        while cursors and left > 0:
            for key, cursor in list(cursors.items()):
                # Sources that are only observed have no materialization.
                page = self._instance.fetch_materializations(key, limit=min(_PAGE, max(left, 1)), cursor=cursor)
                if not page.records and cursor is None:
                    page = self._instance.fetch_observations(key, limit=min(_PAGE, max(left, 1)))
                    page = page._replace(has_more=False)
                for event in page.records:
                    self._take(key, event.event_log_entry)
                left -= len(page.records)
                if page.has_more:
                    cursors[key] = page.cursor
                else:
                    del cursors[key]
            yield True

    def _take(self, key: dg.AssetKey, event: dg.EventLogEntry) -> None:
        asset_event = event.asset_materialization or event.asset_observation
        if asset_event is None:
            return
        asset, partition, timestamp = key.to_user_string(), asset_event.partition or "", event.timestamp
        for stored in raw_records(asset_event.metadata):
            try:
                record = Record.from_dict(stored)
            except ProvenanceError as error:
                self.unreadable.append(f"{asset} {partition}: {error}")
                continue
            ref = record.ref
            self._entries[ref.tool, ref.role, ref.id].append(Entry(record, asset, partition, timestamp, timestamp))
