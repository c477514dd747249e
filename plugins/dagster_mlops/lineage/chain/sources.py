"""The sources of records: tools, each asked within a time limit, and Dagster's event log, which outlives them."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import dagster as dg

from dagster_mlops.core.git import runs_no_code_of_checkouts
from dagster_mlops.core.metadata import DATA_VERSION
from dagster_mlops.core.places import Places
from dagster_mlops.errors import MissingExtraError, ProvenanceError, ToolError
from dagster_mlops.provenance import (
    Accessible,
    Answer,
    Commit,
    Deployment,
    Faulty,
    Inaccessible,
    ModelVersion,
    PredictionBatch,
    Record,
    Ref,
    TrainingRun,
    TrainingSet,
    Unknown,
    raw_records,
)
from dagster_mlops.tools import Tool, answer_within, installed_tools, tool_for

_C = TypeVar("_C")
_R = TypeVar("_R", bound=Record)
_LONGEST = 2_000  # characters of a reason
_WITH_IMPORT = 60.0  # seconds: a cold machine imports some tools for half a minute
_PAGE = 1_000  # events of an asset
_SHORTEST = 7  # characters of a version, as of git
_NEVER_KEPT = {
    "asset": "its IO manager keeps no versions and writes no record, so that the version that was read is unknown.",
    "commit": "the code was not in a git repository when this was made. Commit it before the next run.",
    "dataset": "no asset was read when this was made, and what its code has opened by itself is on no record.",
}


class Tools:
    """The installed tools, or those given by name; one that did not answer in time is not asked again.

    A tool may take `timeout` seconds for an answer; by default ten, and a minute with its first import. It is asked
    only at `places` that the caller has named: those in `allow` are some.

    >>> Tools({}).ask(Ref("dvc", "dataset", "raw.parquet@9f")).bucket
    'inaccessible'
    """

    def __init__(
        self, tools: Mapping[str, Tool] | None = None, timeout: float | None = None, *, allow: Iterable[str] = ()
    ) -> None:
        self._tools = installed_tools() if tools is None else tools
        self.places = Places(allow)
        self._limit, self._timeout = timeout, timeout or _WITH_IMPORT
        # Of tools that need not be asked again: all of one, or one at an address.
        self._final: dict[str | tuple[str, str], Answer] = {}

    @property
    def names(self) -> list[str]:
        """The tools that can be asked."""
        return sorted(self._tools)

    def ask(self, ref: Ref) -> Answer:
        """The tool's answer; also of a tool that raises, hangs or is not installed."""
        if ref.is_unknown:
            return Unknown(_NEVER_KEPT.get(ref.role, "nothing on record says which it was."))
        if ref.tool not in self._tools:
            return Inaccessible(f"No tool {ref.tool!r} is installed here; known: {', '.join(self.names) or 'none'}.")
        if refusal := self.places.refusal(ref):
            return refusal
        if earlier := self._final.get(ref.tool) or self._final.get((ref.tool, ref.at)):
            return earlier
        place = f"(asked at {ref.at or '?'})"
        answer = answer_within(self._timeout, lambda: self._answer(ref), limit=self._limit)
        if answer is None:
            self._final[ref.tool, ref.at] = Inaccessible(f"{ref.tool} did not answer before {place}; not asked again.")
        return answer or Inaccessible(f"{ref.tool} did not answer within {self._timeout:g} s {place}.")

    def tool_for(self, ref: Ref, capability: type[_C]) -> _C:
        """The tool of `ref`, if it has a capability; see :func:`dagster_mlops.tools.tool_for`.

        Raises:
            ToolError: The tool is not installed, cannot be loaded, or lacks the capability, or the place of `ref` is
                not one that the caller has named.
        """
        if refusal := self.places.refusal(ref):
            raise ToolError(refusal.reason)
        return tool_for(ref.tool, capability, self._tools)

    def has(self, ref: Ref, capability: type) -> bool:
        """True if the tool of `ref` is here and has a capability."""
        return ref.tool in self._tools and isinstance(self._tools[ref.tool], capability)

    def _answer(self, ref: Ref) -> Answer:
        try:
            with runs_no_code_of_checkouts():
                return _checked(ref, self._tools[ref.tool].resolve(ref))
        except MissingExtraError as error:
            self._final[ref.tool] = Inaccessible(str(error))
            return self._final[ref.tool]
        except OSError as error:
            return Inaccessible(f"{ref.tool} cannot be reached: {type(error).__name__}: {error}")
        except BaseException as error:  # noqa: BLE001 - whatever a tool throws in its thread is a finding about this link, never the end
            return Faulty(f"The tool {ref.tool} failed: {_said(error)}")


def _checked(ref: Ref, answer: object) -> Answer:
    """An answer, if it is one about `ref`: a tool of a third party may return anything."""
    if not isinstance(answer, Answer):
        return Faulty(f"The tool {ref.tool} returned {_short(repr(answer))}, and not an Answer.")
    record, reason = answer.record, getattr(answer, "reason", "")
    if (record is not None and not isinstance(record, Record)) or not isinstance(reason, str):
        return Faulty(f"The tool {ref.tool} returned a malformed answer: {_short(repr(answer))}.")
    if record is not None and (record.ref.tool, record.ref.role) != (ref.tool, ref.role):
        return Faulty(f"The tool {ref.tool} was asked for {ref} and answered with the record of {record.ref}.")
    return answer if isinstance(answer, Accessible) else dataclasses.replace(answer, reason=_short(reason))


def _said(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {_short(str(error))}"
    except Exception:  # noqa: BLE001 - an exception that cannot even be shown
        return type(error).__name__


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text):,} characters)"


@dataclass(frozen=True)
class Entry:
    """A record as one asset event carries it.

    `version` is the event's data version, and `first_seen` the Unix time of the first event of the same thing.
    """

    record: Record
    asset: str
    partition: str
    timestamp: float
    first_seen: float
    version: str = ""


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
        self._places: set[str] = set()
        self._code_places: set[str] = set()
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

    def names(self, ref: Ref) -> bool:
        """True if a run has made something at the place of a ref or, for git, from a commit of a repository there.

        The runs of the caller's team write the event log, each with the places of its own resources: the tracking URI
        to which it has connected, the repository in which it has stored. That is so even of a record that comes out of
        a tag or a pointer, such as that of a promoted version, since its own place is put in where it is read. What
        such a record names *upstream* is as its writer put it, and does not count. A commit upstream counts if the
        run has made the record: not that of a model version or of a training set, which a registry may have kept, nor
        of what was only observed.
        """
        while ref.at not in self._places and not (ref.role == Commit.role and ref.at in self._code_places):
            if not next(self._rounds, False):
                return False
        return True

    def of_version(self, version: str, of: Ref | None = None) -> Entry | None:
        """The newest record of a version as Dagster's UI shows it: the data version or a hash, whole or its beginning.

        So of an asset, by its key, and of a run of Dagster or of a tracker. With `of`, of the thing that this ref names
        up to its last ``@``; the version is what comes after.
        """
        name, _, version = version.rpartition("@") if of else ("", "", version)
        if of and len(version) < _SHORTEST:
            return None
        while True:
            matching = [
                entry
                for entries in self._entries.values()
                for entry in entries
                if _is_version(version, entry) and (of is None or _is_of(entry.record.ref, of, name))
            ]
            if matching or not next(self._rounds, False):
                # A training makes a version and its run at the same time; the version leads to the run.
                newest = max(matching, key=lambda entry: entry.timestamp, default=None)
                same = (e for e in matching if newest and e.timestamp == newest.timestamp)
                return next((entry for entry in same if isinstance(entry.record, ModelVersion)), newest)

    def entries(self, role: type[_R]) -> list[tuple[_R, Entry]]:
        """The records of one class in the first pages, newest first; `Record` itself gives those of unknown roles."""
        if not self._entries:
            next(self._rounds, False)
        pairs = [
            (entry.record, entry)
            for entries in self._entries.values()
            for entry in entries
            if isinstance(entry.record, role) and (role is not Record or type(entry.record) is Record)
        ]
        return sorted(pairs, key=lambda pair: -pair[1].timestamp)

    def records_in(self, metadata: Mapping[str, Any], where: str) -> list[Record]:
        """The records in metadata; those that this version cannot read are noted as `unreadable`."""
        records: list[Record] = []
        for stored in raw_records(metadata):
            try:
                records.append(Record.from_dict(stored))
            except ProvenanceError as error:
                self.unreadable.append(f"{where}: {error}")
        return records

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
        tags = asset_event.tags or {}
        asset, partition, timestamp = key.to_user_string(), asset_event.partition or "", event.timestamp
        for record in self.records_in(asset_event.metadata, f"{asset} {partition}"):
            ref = record.ref
            entry = Entry(record, asset, partition, timestamp, timestamp, tags.get(DATA_VERSION, ""))
            self._entries[ref.tool, ref.role, ref.id].append(entry)
            self._places.add(ref.at)
            if event.asset_materialization and not isinstance(record, ModelVersion | TrainingSet):
                self._code_places |= {up.at for up in record.upstream if up.role == Commit.role}
            if isinstance(record, Deployment | PredictionBatch):
                self._places.add(record.prediction_log)


def _is_version(text: str, entry: Entry) -> bool:
    # The id of a feature view has the beginning of its version, that of a training set those of three hashes.
    _, has_version, version = entry.record.ref.id.rpartition("@")
    run = entry.record.run_id if isinstance(entry.record, TrainingRun) else ""
    parts = [entry.version, entry.record.dagster_run_id, run, *(version.split("+") if has_version else ())]
    if text == entry.asset or len(text) < _SHORTEST:
        return text == entry.asset
    return any(part.startswith(text) or (len(part) >= _SHORTEST and text.startswith(part)) for part in parts)


def _is_of(ref: Ref, of: Ref, name: str) -> bool:
    return (ref.tool, ref.role, ref.id.rpartition("@")[0]) == (of.tool, of.role, name)
