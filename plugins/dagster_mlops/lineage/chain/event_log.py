"""What Dagster's event log still knows of a thing after its tool has forgotten it."""

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
    """A record as one asset event carries it. `made` is the Unix time of the first event that names the same thing."""

    record: Record
    asset: str
    partition: str
    timestamp: float
    made: float


class EventLog:
    """The provenance records in a Dagster instance, read lazily and newest first.

    The newest 1,000 events of each asset are read at the first question; older ones, page by page, only while
    something is not found, until `limit` events were read in all.

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
        known = [entry for entry in entries if before is None or entry.timestamp <= before] or entries
        known.sort(key=lambda entry: -entry.timestamp)
        # A thing that was recorded again later, such as a promoted version, may then name only itself.
        edges = (tuple(up for up in entry.record.upstream if up != ref) for entry in known)
        record = dataclasses.replace(known[0].record, upstream=next(filter(None, edges), ()))
        return dataclasses.replace(known[0], record=record, made=known[-1].timestamp)

    def entries(self, role: type[_R]) -> list[tuple[_R, Entry]]:
        """Every record of one class among the events read at first, newest first; `Record` itself: of unknown roles."""
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
        happened = event.asset_materialization or event.asset_observation
        if happened is None:
            return
        asset, partition, at = key.to_user_string(), happened.partition or "", event.timestamp
        for stored in raw_records(happened.metadata):
            try:
                record = Record.from_dict(stored)
            except ProvenanceError as error:
                self.unreadable.append(f"{asset} {partition}: {error}")
                continue
            ref = record.ref
            entry = Entry(record=record, asset=asset, partition=partition, timestamp=at, made=at)
            self._entries[ref.tool, ref.role, ref.id].append(entry)
